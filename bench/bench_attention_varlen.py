"""Sequences of unequal lengths: packed, against what a PyTorch user has, which is attention on padded tensors with a
mask, or one call per sequence."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import bigmodel_kernels as bmk

from .case import Case, Inputs, item_bytes, random_tensor


@dataclass(frozen=True)
class Shape:
    """q, k and v [tokens, heads, head_dim] of sequences with these lengths."""

    name: str
    lengths: tuple[int, ...]
    heads: int = 8
    head_dim: int = 64
    causal: bool = False

    def __str__(self) -> str:
        lengths = f"{len(self.lengths)} of {min(self.lengths)}-{max(self.lengths)}"
        return f"({lengths},{self.heads},{self.head_dim}) {self.name}{' causal' if self.causal else ''}"

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def scores(self) -> int:
        """Of one head: half of them where causal."""
        return sum(length * (length + 1) // 2 if self.causal else length * length for length in self.lengths)


def _spread(count: int, least: int, most: int) -> tuple[int, ...]:
    """Lengths evenly spread, in a fixed order that is not sorted."""
    lengths = torch.linspace(least, most, count).int()
    return tuple(lengths[torch.randperm(count, generator=torch.Generator().manual_seed(0))].tolist())


QUICK = [
    Shape("sentences", _spread(32, 16, 256)),
    Shape("one long", (1024, *(64,) * 15), causal=True),
]
FULL = [
    *QUICK,
    Shape("sentences", _spread(32, 16, 256), causal=True),
    Shape("short", _spread(256, 4, 32), heads=12),
    Shape("documents", _spread(8, 256, 2048), causal=True),
]
CUDA = [
    Shape("sentences", _spread(256, 16, 512), heads=16),
    Shape("documents", _spread(8, 512, 8192), heads=16, causal=True),
    Shape("one long", (4096, *(64,) * 31), heads=16, causal=True),
]


def cases(quick: bool, dtypes: list[str], device: str = "cpu") -> Iterator[Case]:
    """The rows of this op."""
    for dtype in dtypes:
        for shape in CUDA if device == "cuda" else QUICK if quick else FULL:
            for backward in (False, True):
                yield case(shape, dtype, backward)


def case(shape: Shape, dtype: str, backward: bool) -> Case:
    """The row of one shape. Forward counts 2 products, backward 5."""
    width = shape.heads * shape.head_dim
    tensors = 4 + (5 if backward else 0)  # q, k, v, output; their gradients, and output again
    return Case(
        op="attention_varlen",
        shape=str(shape),
        dtype=dtype,
        flops=(2 + (5 if backward else 0)) * 2 * shape.scores * width,
        bytes=tensors * shape.tokens * width * item_bytes(dtype),
        make_inputs=lambda generator: make_inputs(shape, dtype, backward, generator),
        contenders={
            "ours": lambda inputs: ours(shape, inputs),
            "torch": lambda inputs: padded(shape, inputs),
            "torch, one by one": lambda inputs: one_by_one(shape, inputs),
        },
        truth=lambda inputs: ours(shape, inputs, backend="reference"),
        differentiable=("query", "key", "value") if backward else (),
    )


def make_inputs(shape: Shape, dtype: str, backward: bool, generator: torch.Generator) -> Inputs:
    """query, key and value, where the sequences start, and which places of the padded tensors are filled."""
    size = (shape.tokens, shape.heads, shape.head_dim)
    names = ("query", "key", "value", *(("grad_output",) if backward else ()))
    tensors = {name: random_tensor(generator, dtype, *size) for name in names}
    lengths = torch.tensor(shape.lengths)
    starts = F.pad(lengths.cumsum(0), (1, 0))
    return {**tensors, "starts": starts, "filled": torch.arange(max(shape.lengths)) < lengths[:, None]}


def ours(shape: Shape, inputs: Inputs, backend: str | None = None) -> Tensor:
    """The call of this package."""
    packed = (inputs[name] for name in ("query", "key", "value"))
    return bmk.attention_varlen(*packed, inputs["starts"], inputs["starts"], causal=shape.causal, backend=backend)


def padded(shape: Shape, inputs: Inputs) -> Tensor:
    """Padding, scaled_dot_product_attention with a mask, and the padding taken off again."""
    filled = inputs["filled"]
    tensors = []
    for name in ("query", "key", "value"):
        whole = inputs[name].new_zeros(*filled.shape, shape.heads, shape.head_dim)
        whole[filled] = inputs[name]
        tensors.append(whole.transpose(1, 2))
    mask = filled[:, None, None]
    if shape.causal:
        mask = mask & torch.ones(filled.shape[1], filled.shape[1], dtype=torch.bool, device=filled.device).tril()
    return F.scaled_dot_product_attention(*tensors, attn_mask=mask).transpose(1, 2)[filled]


def one_by_one(shape: Shape, inputs: Inputs) -> Tensor:
    """A loop over the sequences."""
    outputs = []
    for parts in zip(*(inputs[name].split(shape.lengths) for name in ("query", "key", "value")), strict=True):
        tensors = (x.transpose(0, 1)[None] for x in parts)
        output = F.scaled_dot_product_attention(*tensors, is_causal=shape.causal)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)
