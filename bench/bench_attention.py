"""attention against torch.nn.functional.scaled_dot_product_attention."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import bigmodel_kernels as bmk

from .case import Case, Function, Inputs, item_bytes, random_tensor
from .torch_attention import SDPA_BACKENDS, forced, with_flex

# One head of at most this many scores is what float64 truth is computed on: 8 heads' worth of 2048 x 2048.
_MOST_TRUE_SCORES = 1 << 25


@dataclass(frozen=True)
class Shape:
    """q [batch, heads, length, head_dim]; k and v with kv_heads; padding: each sequence ends somewhere else;
    additive: a bias per query and key, shared by the heads."""

    batch: int
    heads: int
    length: int
    head_dim: int
    kv_heads: int | None = None
    causal: bool = False
    padding: bool = False
    additive: bool = False

    def __str__(self) -> str:
        heads = self.heads if self.kv_heads is None else f"{self.heads}/{self.kv_heads}"
        options = (" causal" if self.causal else "") + (" padding mask" if self.padding else "")
        options += " additive mask" if self.additive else ""
        return f"({self.batch},{heads},{self.length},{self.head_dim}){options}"

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """Where each sequence ends, from half to all of the length; None without padding."""
        if not self.padding:
            return None
        return tuple(torch.linspace(self.length // 2, self.length, self.batch).int().tolist())


QUICK = [
    Shape(1, 4, 32, 32),
    Shape(1, 4, 32, 32, causal=True),
    Shape(8, 12, 128, 64),
    Shape(4, 8, 512, 64),
    Shape(4, 8, 512, 64, causal=True),
    Shape(4, 8, 512, 64, padding=True),
    Shape(1, 32, 512, 64, kv_heads=8),
    Shape(1, 8, 1024, 64),
    Shape(1, 8, 1024, 128),
    Shape(1, 16, 2048, 64),
    Shape(1, 16, 2048, 64, causal=True),
]
FULL = [
    *QUICK,
    Shape(8, 12, 128, 64, causal=True),
    Shape(1, 16, 2048, 64, padding=True),
    Shape(1, 16, 2048, 128),
    Shape(1, 16, 2048, 128, causal=True),
    Shape(1, 32, 2048, 128, kv_heads=8, causal=True),
    Shape(1, 1, 4096, 64),
    Shape(2, 16, 197, 80),
    Shape(1, 8, 1024, 256, causal=True),
]

CUDA = [
    Shape(4, 16, 4096, 64),
    Shape(4, 16, 4096, 64, causal=True),
    Shape(4, 16, 4096, 128),
    Shape(4, 16, 4096, 128, causal=True),
    Shape(4, 16, 4096, 128, padding=True),
    Shape(4, 32, 4096, 128, kv_heads=8, causal=True),
    Shape(2, 8, 4096, 256, causal=True),
    Shape(32, 16, 512, 64),
]


def cases(quick: bool, dtypes: list[str], device: str = "cpu") -> Iterator[Case]:
    """The rows of this op."""
    for dtype in dtypes:
        for shape in CUDA if device == "cuda" else QUICK if quick else FULL:
            for backward in (False, True):
                yield case(shape, dtype, backward, device)


def case(shape: Shape, dtype: str, backward: bool, device: str = "cpu") -> Case:
    """The row of one shape."""
    return Case(
        op="attention",
        shape=str(shape),
        dtype=dtype,
        flops=_flops(shape, backward),
        bytes=_bytes(shape, dtype, backward),
        make_inputs=lambda generator: make_inputs(shape, dtype, generator),
        contenders=contenders(shape, device),
        truth=lambda inputs: ours(shape, inputs, backend="reference"),
        differentiable=("query", "key", "value") if backward else (),
        crop=lambda name, tensor: crop(shape, name, tensor),
    )


def contenders(shape: Shape, device: str) -> dict[str, Function]:
    """Ours and what torch chooses by itself; on a CUDA device also everything that it could have chosen."""
    found: dict[str, Function] = {
        "ours": lambda inputs: ours(shape, inputs),
        "torch": lambda inputs: with_torch(shape, inputs),
    }
    if device == "cuda":
        for name, backend in SDPA_BACKENDS.items():
            found[name] = forced(backend, lambda inputs: with_torch(shape, inputs))
        found["torch flex"] = with_flex(shape.causal, shape.lengths)
    return found


def make_inputs(shape: Shape, dtype: str, generator: torch.Generator) -> Inputs:
    """query, key, value, mask and grad_output."""
    q_shape = (shape.batch, shape.heads, shape.length, shape.head_dim)
    kv_shape = (shape.batch, shape.key_heads, shape.length, shape.head_dim)
    mask = None
    if shape.lengths is not None:
        mask = (torch.arange(shape.length) < torch.tensor(shape.lengths)[:, None])[:, None, None, :]
    if shape.additive:
        mask = random_tensor(generator, dtype, shape.batch, 1, shape.length, shape.length)
    return {
        "query": random_tensor(generator, dtype, *q_shape),
        "key": random_tensor(generator, dtype, *kv_shape),
        "value": random_tensor(generator, dtype, *kv_shape),
        "mask": mask,
        "grad_output": random_tensor(generator, dtype, *q_shape),
    }


def ours(shape: Shape, inputs: Inputs, backend: str | None = None) -> Tensor:
    """The call of this package."""
    return bmk.attention(
        inputs["query"], inputs["key"], inputs["value"], mask=inputs["mask"], causal=shape.causal, backend=backend
    )


def with_torch(shape: Shape, inputs: Inputs) -> Tensor:
    """The call that a PyTorch user makes."""
    return F.scaled_dot_product_attention(
        inputs["query"],
        inputs["key"],
        inputs["value"],
        attn_mask=inputs["mask"],
        is_causal=shape.causal,
        enable_gqa=shape.kv_heads is not None,
    )


def crop(shape: Shape, name: str, tensor: Tensor) -> Tensor:
    """The first sequence's first heads, with the key heads they read: as many as truth can afford, at least one."""
    group = shape.heads // shape.key_heads
    kv_heads = min(shape.key_heads, max(1, _MOST_TRUE_SCORES // (group * shape.length**2)))
    if name == "mask":
        return tensor[:1]
    return tensor[:1, : kv_heads if name in ("key", "value") else kv_heads * group]


def _flops(shape: Shape, backward: bool) -> int:
    """Two products of q_len x kv_len x head_dim forward and five backward; causal attention needs half of each."""
    one_product = 2 * shape.batch * shape.heads * shape.length**2 * shape.head_dim
    return one_product * (7 if backward else 2) // (2 if shape.causal else 1)


def _bytes(shape: Shape, dtype: str, backward: bool) -> int:
    """Forward: q, k, v read, output written; backward: these and the gradient read, three gradients written."""
    q = shape.batch * shape.heads * shape.length * shape.head_dim
    k = shape.batch * shape.key_heads * shape.length * shape.head_dim
    elements = 2 * q + 2 * k + ((4 * q + 4 * k) if backward else 0)
    return elements * item_bytes(dtype)
