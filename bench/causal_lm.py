"""A training step and greedy generation of one small Llama: CausalLM beside transformers' model of the same weights.

    python -m bigmodel_bench.causal_lm [seconds of sampling]

Contenders take turns in one process (harness.py). A step is forward, loss, backward and AdamW on 16 windows of 256
tokens; generation is 200 tokens after a prompt of 4, both with their caches. Needs the `test` extra (transformers).
"""

import sys

import torch
import torch.nn.functional as F

from bigmodel_kernels.models import CausalLM

from .harness import Timing, measure

SIZES = {
    "vocab_size": 256,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 768,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
NEW_TOKENS = 200


def models() -> tuple[torch.nn.Module, CausalLM]:
    """transformers' and ours, of the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES)
    theirs = LlamaForCausalLM(config)
    return theirs, CausalLM.from_hugging_face(config, theirs.state_dict())


def steps(theirs: torch.nn.Module, ours: CausalLM) -> dict:
    """By contender, a training step."""
    tokens = torch.randint(0, SIZES["vocab_size"], (16, 257))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    losses = {
        "ours": lambda: ours.loss(inputs, targets),
        "transformers (SDPA)": lambda: F.cross_entropy(theirs(inputs).logits.flatten(0, 1), targets.flatten()),
    }

    def step(name: str, model: torch.nn.Module):
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def run(turn: int) -> None:
            losses[name]().backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    return {name: step(name, model) for name, model in zip(losses, (ours, theirs), strict=True)}


def generations(theirs: torch.nn.Module, ours: CausalLM) -> dict:
    """By contender, greedy generation. No end: every token is generated."""
    theirs.eval()
    prompt = torch.tensor([list(b"The ")])
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return {
        "ours": lambda turn: ours.generate(prompt, NEW_TOKENS),
        "transformers (SDPA)": lambda turn: theirs.generate(prompt, **options),
    }


def main(budget_s: float) -> None:
    """Prints the tables."""
    theirs, ours = models()
    print(f"{torch.get_num_threads()} threads, {sum(p.numel() for p in ours.parameters()):,} parameters, fp32")
    for what, calls, tokens in (
        ("training step", steps(theirs, ours), 16 * 256),
        ("generation", generations(theirs, ours), NEW_TOKENS),
    ):
        for name, timing in measure(calls, budget_s / 2).items():
            if not isinstance(timing, Timing):
                print(f"{what:14} {name:20} failed: {timing}")
                continue
            print(
                f"{what:14} {name:20} {timing.median_s * 1e3:8.1f} ms  {tokens / timing.median_s:8.0f} tokens/s  "
                f"spread {timing.spread:4.0%}"
            )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)
