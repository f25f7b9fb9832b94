"""rotary against the formula that models write in PyTorch: x cos + rotate_half(x) sin, of query and key."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import bigmodel_kernels as bmk

from .case import Case, Inputs, item_bytes, random_tensor


@dataclass(frozen=True)
class Shape:
    """query [batch, heads, length, head_dim], key with kv_heads."""

    batch: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int
    interleaved: bool = False

    def __str__(self) -> str:
        form = " interleaved" if self.interleaved else ""
        return f"{self.batch}x{self.heads}/{self.kv_heads}x{self.length}x{self.head_dim}{form}"


QUICK = [Shape(1, 32, 8, 1024, 128), Shape(1, 32, 8, 1024, 128, interleaved=True)]
FULL = [*QUICK, Shape(8, 32, 8, 1, 128), Shape(4, 12, 12, 2048, 64), Shape(1, 32, 8, 1, 128)]

CUDA = [Shape(4, 32, 8, 4096, 128), Shape(4, 32, 8, 4096, 128, interleaved=True), Shape(64, 32, 8, 1, 128)]


def cases(quick: bool, dtypes: list[str], device: str = "cpu") -> Iterator[Case]:
    """The rows of this op."""
    for dtype in dtypes:
        for shape in CUDA if device == "cuda" else QUICK if quick else FULL:
            for backward in (False, True):
                yield case(shape, dtype, backward)


def case(shape: Shape, dtype: str, backward: bool) -> Case:
    """The row of one shape."""
    elements = shape.batch * (shape.heads + shape.kv_heads) * shape.length * shape.head_dim
    passes = 2 if backward else 1
    return Case(
        op="rotary",
        shape=str(shape),
        dtype=dtype,
        flops=3 * elements * passes,  # per pair four products and two sums
        bytes=2 * elements * item_bytes(dtype) * passes,
        make_inputs=lambda generator: _make_inputs(shape, dtype, generator),
        contenders={"ours": lambda inputs: _ours(shape, inputs), "torch": lambda inputs: _with_torch(shape, inputs)},
        truth=lambda inputs: _ours(shape, inputs, backend="reference"),
        differentiable=("query", "key") if backward else (),
    )


def _make_inputs(shape: Shape, dtype: str, generator: torch.Generator) -> Inputs:
    query = (shape.batch, shape.heads, shape.length, shape.head_dim)
    key = (shape.batch, shape.kv_heads, shape.length, shape.head_dim)
    angles = torch.rand(shape.length, shape.head_dim // 2, generator=generator) * 6
    return {
        "query": random_tensor(generator, dtype, *query),
        "key": random_tensor(generator, dtype, *key),
        "cos": angles.cos(),
        "sin": angles.sin(),
        "grad_output 0": random_tensor(generator, dtype, *query),
        "grad_output 1": random_tensor(generator, dtype, *key),
    }


def _ours(shape: Shape, inputs: Inputs, backend: str | None = None) -> tuple[Tensor, Tensor]:
    return bmk.rotary(
        inputs["query"], inputs["key"], inputs["cos"], inputs["sin"], interleaved=shape.interleaved, backend=backend
    )


def _with_torch(shape: Shape, inputs: Inputs) -> tuple[Tensor, ...]:
    def wide(table: Tensor, dtype: torch.dtype) -> Tensor:
        table = table.to(dtype)
        return table.repeat_interleave(2, dim=-1) if shape.interleaved else torch.cat([table, table], dim=-1)

    def rotate(x: Tensor) -> Tensor:
        if shape.interleaved:
            return torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        a, b = x.chunk(2, dim=-1)
        return torch.cat([-b, a], dim=-1)

    dtype = inputs["query"].dtype
    cos, sin = wide(inputs["cos"], dtype), wide(inputs["sin"], dtype)
    return tuple(inputs[name] * cos + rotate(inputs[name]) * sin for name in ("query", "key"))
