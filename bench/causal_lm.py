"""A training step and greedy generation of one small Llama: CausalLM beside transformers' model of the same weights.

    bigmodel bench --models training,generation

Contenders take turns in one process (harness.py). A step is forward, loss, backward and AdamW on 16 windows of 256
tokens; generation is 200 tokens after a prompt of 4, all with their caches. "transformers with ours" is transformers'
model after `register()` and `replace_modules`. Needs the `bench` extra (transformers).
"""

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from bigmodel_kernels import replace_modules
from bigmodel_kernels.integrations.transformers import register
from bigmodel_kernels.models import CausalLM

from .model_row import OURS, ModelRow, timed

SIZES = {
    "vocab_size": 256,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 768,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
BATCH, LENGTH, NEW_TOKENS = 16, 256, 200
THEIRS, WITH_OURS = "transformers (SDPA)", "transformers with ours"


def models() -> dict[str, torch.nn.Module]:
    """By contender, a model; all have the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES)
    theirs = LlamaForCausalLM(config)
    with_ours = copy.deepcopy(theirs)
    with_ours.set_attn_implementation(register())
    replace_modules(with_ours)
    return {OURS: CausalLM.from_hugging_face(config, theirs.state_dict()), THEIRS: theirs, WITH_OURS: with_ours}


def steps(contenders: dict[str, torch.nn.Module]) -> dict[str, Callable[[int], None]]:
    """By contender, a training step."""
    tokens = torch.randint(0, SIZES["vocab_size"], (BATCH, LENGTH + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step(name: str, model: torch.nn.Module) -> Callable[[int], None]:
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def run(turn: int) -> None:
            if name == OURS:
                loss = model.loss(inputs, targets)
            else:
                loss = F.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    return {name: step(name, model) for name, model in contenders.items()}


def generations(contenders: dict[str, torch.nn.Module]) -> dict[str, Callable[[int], object]]:
    """By contender, greedy generation. No end: every token is generated."""
    prompt = torch.tensor([list(b"The ")])
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def generate(name: str, model: torch.nn.Module) -> Callable[[int], object]:
        model.eval()
        if name == OURS:
            return lambda turn: model.generate(prompt, NEW_TOKENS)
        return lambda turn: model.generate(prompt, **options)

    return {name: generate(name, model) for name, model in contenders.items()}


def training_rows(budget_s: float, on_progress: Callable[[str], None]) -> Iterator[ModelRow]:
    """One row."""
    contenders = models()
    what = f"training step of {_described(contenders)}, {BATCH} x {LENGTH} tokens"
    on_progress(what)
    yield _with_rate(timed(what, steps(contenders), budget_s), BATCH * LENGTH)


def generation_rows(budget_s: float, on_progress: Callable[[str], None]) -> Iterator[ModelRow]:
    """One row."""
    contenders = models()
    what = f"greedy generation of {_described(contenders)}, {NEW_TOKENS} tokens"
    on_progress(what)
    yield _with_rate(timed(what, generations(contenders), budget_s), NEW_TOKENS)


def _described(contenders: dict[str, torch.nn.Module]) -> str:
    millions = sum(p.numel() for p in contenders[OURS].parameters()) / 1e6
    return f"a Llama of {millions:.1f} million parameters, fp32"


def _with_rate(row: ModelRow, tokens: int) -> ModelRow:
    for name, result in row.results.items():
        if result.timing:
            row.notes[name] = f"{tokens / result.timing.median_s:,.0f} tokens/s"
    return row
