"""Attention with its weights (`need_weights=True`), against the matmul, softmax, matmul that torch needs for them."""

from collections.abc import Iterator

import torch
from torch import Tensor

import bigmodel_kernels as bmk

from .bench_attention import Shape, crop, make_inputs
from .case import Case, Inputs, item_bytes

QUICK = [Shape(4, 8, 512, 64)]
FULL = [*QUICK, Shape(1, 4, 32, 32), Shape(8, 12, 128, 64), Shape(1, 16, 2048, 64)]

CUDA = [Shape(4, 16, 2048, 64), Shape(4, 16, 2048, 128)]


def cases(quick: bool, dtypes: list[str], device: str = "cpu") -> Iterator[Case]:
    """The rows of this op."""
    for dtype in dtypes:
        for shape in CUDA if device == "cuda" else QUICK if quick else FULL:
            yield _case(shape, dtype, average=True)
            if not quick:
                yield _case(shape, dtype, average=False)


def _case(shape: Shape, dtype: str, average: bool) -> Case:
    return Case(
        op="attention_weights",
        shape=f"{shape} {'averaged' if average else 'per head'}",
        dtype=dtype,
        flops=4 * shape.batch * shape.heads * shape.length**2 * shape.head_dim,
        bytes=_bytes(shape, dtype, average),
        make_inputs=lambda generator: make_inputs(shape, dtype, generator),
        contenders={
            "ours": lambda inputs: _ours(inputs, average),
            "torch": lambda inputs: _with_torch(inputs, average),
        },
        truth=lambda inputs: _ours(inputs, average, backend="reference"),
        # An average needs all heads of its sequence.
        crop=(lambda name, tensor: tensor[:1]) if average else (lambda name, tensor: crop(shape, name, tensor)),
    )


def _ours(inputs: Inputs, average: bool, backend: str | None = None) -> tuple[Tensor, Tensor]:
    query, key = inputs["query"], inputs["key"]
    output, lse = bmk.attention(query, key, inputs["value"], return_lse=True, backend=backend)
    return output, bmk.attention_weights(query, key, lse, average_heads=average, backend=backend)


def _with_torch(inputs: Inputs, average: bool) -> tuple[Tensor, Tensor]:
    query = inputs["query"] * inputs["query"].shape[-1] ** -0.5
    weights = torch.softmax(query @ inputs["key"].transpose(-2, -1), dim=-1)
    return weights @ inputs["value"], weights.mean(dim=1) if average else weights


def _bytes(shape: Shape, dtype: str, average: bool) -> int:
    vectors = 4 * shape.batch * shape.heads * shape.length * shape.head_dim
    weights = shape.batch * (1 if average else shape.heads) * shape.length**2
    return (vectors + weights) * item_bytes(dtype)
