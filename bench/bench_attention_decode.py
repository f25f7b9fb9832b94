"""A step of generation, attention of one new query per sequence over a cache, against scaled_dot_product_attention on
the cache's filled part. It is bound by reading the cache: bytes are what counts, and the column of the peak says how
much of the memory's bandwidth that is."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import bigmodel_kernels as bmk

from .case import Case, Inputs, item_bytes, random_tensor


@dataclass(frozen=True)
class Shape:
    """query [batch, heads, 1, head_dim] over caches [batch, kv_heads, length, head_dim], whose last entry is new. int8:
    the caches, with a scale for each entry; else they have the query's dtype."""

    batch: int
    length: int
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    int8: bool = False

    def __str__(self) -> str:
        cache = ", int8 cache" if self.int8 else ""
        return f"({self.batch},{self.heads}/{self.kv_heads},1 over {self.length},{self.head_dim}{cache})"

    def cache_bytes(self, dtype: str) -> int:
        entry = self.head_dim + 4 if self.int8 else self.head_dim * item_bytes(dtype)
        return 2 * self.batch * self.kv_heads * self.length * entry


QUICK = [(1, 2048), (1, 8192)]
FULL = [(batch, length) for batch in (1, 8) for length in (2048, 8192, 32768)]
CUDA = [(1, 32768), (8, 32768), (64, 8192)]
# Every contender has a cache of its own.
_MOST_CACHE_BYTES = 1100 << 20


def shapes(dtype: str, int8: bool) -> list[Shape]:
    """Those of the full suite whose caches leave room for the other contenders' in the memory of a small machine."""
    all_of_them = [Shape(batch, length, int8=int8) for batch, length in FULL]
    return [shape for shape in all_of_them if shape.cache_bytes(dtype) <= _MOST_CACHE_BYTES]


def cases(quick: bool, dtypes: list[str], device: str = "cpu") -> Iterator[Case]:
    """The rows of this op. int8 caches beside those of 16 bits."""
    chosen = CUDA if device == "cuda" else QUICK if quick else None
    for dtype in dtypes:
        for int8 in (False, True) if dtype == "bf16" else (False,):
            for shape in shapes(dtype, int8) if chosen is None else [Shape(*each, int8=int8) for each in chosen]:
                yield case(shape, dtype)


def case(shape: Shape, dtype: str) -> Case:
    """The row of one shape."""
    vectors = 2 * shape.batch * shape.heads * shape.head_dim * item_bytes(dtype)
    return Case(
        op="attention_decode",
        shape=str(shape),
        dtype=dtype,
        flops=4 * shape.batch * shape.heads * shape.length * shape.head_dim,
        bytes=shape.cache_bytes(dtype) + vectors,
        make_inputs=lambda generator: make_inputs(shape, dtype, generator),
        contenders={"ours": ours, "torch": with_torch, "torch, heads as rows": with_torch_rows},
        truth=lambda inputs: ours(inputs, backend="reference"),
        crop=lambda name, tensor: crop(shape, name, tensor),
    )


def make_inputs(shape: Shape, dtype: str, generator: torch.Generator) -> Inputs:
    """query, caches, their scales (None but for int8), new rows and lengths."""
    entries = (shape.batch, shape.kv_heads, shape.length)
    inputs: Inputs = {
        "query": random_tensor(generator, dtype, shape.batch, shape.heads, 1, shape.head_dim),
        "cache_lengths": torch.full((shape.batch,), shape.length - 1),
    }
    for name in ("key", "value"):
        scales = None
        if shape.int8:
            cache = torch.randint(-127, 128, (*entries, shape.head_dim), generator=generator, dtype=torch.int8)
            scales = 0.01 + 0.01 * torch.rand(entries, generator=generator)
        else:
            cache = random_tensor(generator, dtype, *entries, shape.head_dim)
        new = random_tensor(generator, dtype, shape.batch, shape.kv_heads, 1, shape.head_dim)
        inputs |= {f"{name}_cache": cache, f"{name}_scales": scales, f"new_{name}": new}
    return inputs


def ours(inputs: Inputs, backend: str | None = None) -> Tensor:
    """The call of this package."""
    return bmk.attention_decode(**inputs, backend=backend)


def with_torch(inputs: Inputs) -> Tensor:
    """What a PyTorch user writes: the new rows into the cache, then attention over its filled part."""
    return F.scaled_dot_product_attention(inputs["query"], *_filled(inputs), enable_gqa=True)


def with_torch_rows(inputs: Inputs) -> Tensor:
    """The same, the query heads of a kv head as the rows of one query: faster, and seldom seen."""
    query, (key, value) = inputs["query"], _filled(inputs)
    batch, heads, _, head_dim = query.shape
    rows = query.reshape(batch, key.shape[1], heads // key.shape[1], head_dim)
    return F.scaled_dot_product_attention(rows, key, value).reshape(batch, heads, 1, head_dim)


def _filled(inputs: Inputs) -> list[Tensor]:
    """Keys and values with the new ones, in the query's dtype."""
    end = inputs["key_cache"].shape[2]
    filled = []
    for name in ("key", "value"):
        cache, scales, new = (inputs[each] for each in (f"{name}_cache", f"{name}_scales", f"new_{name}"))
        if scales is None:
            cache[:, :, end - 1 : end] = new
            filled.append(cache[:, :, :end])
            continue
        scales[:, :, end - 1 : end] = new.float().abs().amax(-1) / 127
        cache[:, :, end - 1 : end] = torch.round(new.float() / scales[:, :, end - 1 : end, None]).to(torch.int8)
        filled.append(cache[:, :, :end].to(new.dtype) * scales[:, :, :end, None].to(new.dtype))
    return filled


def crop(shape: Shape, name: str, tensor: Tensor) -> Tensor:
    """The first sequence's first kv head, with the query heads that read it."""
    if name == "cache_lengths":
        return tensor[:1]
    return tensor[:1, : shape.heads // shape.kv_heads if name in ("query", "output") else 1]
