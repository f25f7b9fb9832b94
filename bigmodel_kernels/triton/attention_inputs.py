"""What the attention kernels take: tensors with their strides, sizes, and the options as compile-time features.

Named tuples, because Triton takes them as kernel arguments and hands their fields to helpers. A field of `Inputs` is a
run-time value; a field of `Features` is a constant, and code for what is off does not exist in the compiled kernel.
A tuple that holds tuples holds nothing else: of one that does, Triton 3.6 forgets in loops which strides are 1.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .attention_launch import LARGEST_TF32
from .dropout import dropout_constants
from .launch import matmul_arithmetic
from .matrices import Vector, vector

LOG2E = 1 / math.log(2)
LARGEST_HEAD = 512
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class View(NamedTuple):
    """A tensor [batch, heads, rows, columns]: its address and strides in elements. data is None where it is absent."""

    data: Any
    batch: int
    head: int
    row: int
    column: int


class Slopes(NamedTuple):
    """ALiBi slopes [batch, heads]."""

    data: Any
    batch: int
    head: int


class Sizes(NamedTuple):
    batch: int
    heads: int
    group: int  # query heads per key head
    q_len: int
    kv_len: int
    head_dim: int
    value_dim: int


class Band(NamedTuple):
    """Query i sees keys i + diagonal - before <= j <= i + diagonal + after, each side if the feature of its name is on:
    causal and window in one."""

    diagonal: int
    before: int
    after: int


class Rules(NamedTuple):
    """scale: of the products of queries and keys, in units of log2; with a softcap, of tanh's argument.
    cap: the softcap in units of log2. gradient_scale: dscore / dproduct, but for tanh's derivative."""

    scale: float
    cap: float
    gradient_scale: float


class Dropout(NamedTuple):
    seed: Any  # int64, read by the kernel
    threshold: int
    scale: float


class Packed(NamedTuple):
    """Sequences that follow each other along the rows, attention_varlen's. A tensor's View then holds all of them and
    has a batch stride of 0, Sizes has all queries and keys, and the batch counts sequences: packed_sequences.py makes a
    sequence's own Inputs of that. All is None where the call is not packed.

    query_starts, key_starts: [sequences + 1]; queries, keys: how many there are in all; aligned: how many times
    kv_len - q_len the diagonal is, 0 or 1; tiles, slots: of the pass at hand, see packed_sequences.py; query, key: the
    first ones of the sequence whose own Inputs these are."""

    query_starts: Any = None
    key_starts: Any = None
    queries: int | None = None
    keys: int | None = None
    aligned: int | None = None
    tiles: Any = None
    slots: int | None = None
    query: int | None = None
    key: int | None = None


class Inputs(NamedTuple):
    query: View
    key: View
    value: View
    mask: View
    slopes: Slopes
    sinks: Vector
    sizes: Sizes
    band: Band
    rules: Rules
    dropout: Dropout
    packed: Packed = Packed()


class Features(NamedTuple):
    """plain: scores need no more than scaling by a positive number, and removals; before, after: the band's bounded
    sides; mask: "none", "bool" or "float"; wide: strides that need 64-bit offsets inside a tile; head_exact,
    value_exact: head_dim and value_dim fill their tiles; precision: of fp32 products, "ieee" or "tf32"; chunk: how many
    features at a time the gradients' products of rows take, 0 for all; packed: Inputs has packed sequences."""

    plain: bool
    softcap: bool
    alibi: bool
    mask: str
    before: bool
    after: bool
    dropout: bool
    sinks: bool
    wide: bool
    head_exact: bool
    value_exact: bool
    precision: str
    chunk: int = 0
    packed: bool = False
    crowded: bool = False


def padded(features: int) -> int:
    """The size of a tile that holds so many features: a power of two, at least what a matrix product takes."""
    return max(16, triton.next_power_of_2(features))


def view(x: Tensor | None) -> View:
    return View(None, 0, 0, 0, 0) if x is None else View(x, *x.stride())


def broadcast_view(x: Tensor | None, full: tuple[int, ...]) -> View:
    """The view of x expanded to the full shape: dimensions of size 1 have stride 0."""
    return view(x if x is None else x.expand(full))


def prepare(
    op: str,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: Tensor | None,
    alibi_slopes: Tensor | None,
    sinks: Tensor | None,
    dropout_seed: Tensor | None,
    *,
    causal: str,
    scale: float | None,
    window_left: int,
    window_right: int,
    softcap: float,
    dropout_p: float,
    packed: Packed | None = None,
) -> tuple[Inputs, Features]:
    """The kernels' arguments of a call with the schema's arguments; value is None for attention_weights. packed: that
    of attention_varlen, whose tensors come as Packed says, and whose mask is of the longest sequence's sizes."""
    batch, heads, q_len, head_dim = query.shape
    kv_heads, kv_len = key.shape[1:3]
    value_dim = head_dim if value is None else value.shape[3]
    check(op, query, key, value, dropout_seed, causal, dropout_p)
    sizes = Sizes(batch, heads, heads // max(kv_heads, 1), q_len, kv_len, head_dim, value_dim)
    scale = head_dim**-0.5 if scale is None else scale
    before, after = (_side(window, sizes) for window in (window_left, window_right))
    after = after if causal == "none" else 0
    threshold, kept_scale = dropout_constants(dropout_p)
    of_scores = (batch, heads, q_len, kv_len)
    if packed is not None and mask is not None:
        of_scores = (*of_scores[:2], *(of_scores[dim] if mask.shape[dim] == 1 else mask.shape[dim] for dim in (2, 3)))
    inputs = Inputs(
        query=view(query),
        key=view(key),
        value=view(value),
        mask=broadcast_view(mask, of_scores),
        slopes=_slopes(alibi_slopes, batch, heads),
        sinks=vector(sinks),
        sizes=sizes,
        band=Band(0 if causal == "top_left" else kv_len - q_len, before or 0, after or 0),
        rules=_rules(scale, softcap),
        dropout=Dropout(dropout_seed.to(query.device) if dropout_p > 0 else None, threshold, kept_scale),
        packed=Packed() if packed is None else packed,
    )
    additive = mask is not None and mask.dtype != torch.bool
    features = Features(
        plain=softcap == 0 and alibi_slopes is None and not additive and scale > 1e-30,
        softcap=softcap > 0,
        alibi=alibi_slopes is not None,
        mask="none" if mask is None else "float" if additive else "bool",
        before=before is not None,
        after=after is not None,
        dropout=dropout_p > 0,
        sinks=sinks is not None,
        wide=any(needs_wide(each, kv_len) for each in (inputs.query, inputs.key, inputs.value, inputs.mask)),
        head_exact=head_dim == padded(head_dim),
        value_exact=value_dim == padded(value_dim),
        precision=precision(query.dtype, query.device, max(padded(head_dim), padded(value_dim))),
        packed=packed is not None,
    )
    return inputs, features


def check(
    op: str,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    dropout_seed: Tensor | None,
    causal: str,
    dropout_p: float,
) -> None:
    """What a call that did not come through `functional` must not get wrong, lest a kernel reads what is not there."""
    named = {"query": query, "key": key} | ({} if value is None else {"value": value})
    for name, x in named.items():
        if x.dim() != 4:
            raise ValueError(f"[{op}] {name} has {x.dim()} dimensions, expected 4")
        if x.dtype != query.dtype or x.dtype not in KERNEL_DTYPES:
            raise ValueError(f"[{op}] {name} has dtype {x.dtype}; expected float32, bfloat16 or float16, as query")
    sizes = {"head_dim": query.shape[3]} | ({} if value is None else {"value_dim": value.shape[3]})
    for name, features in sizes.items():
        if not 1 <= features <= LARGEST_HEAD:
            raise ValueError(f"[{op}] {name} is {features}; the triton backend takes 1 to {LARGEST_HEAD}")
    batch, heads, _, head_dim = query.shape
    kv_heads, kv_len = key.shape[1:3]
    if key.shape[0] != batch or key.shape[3] != head_dim:
        raise ValueError(f"[{op}] key has shape {list(key.shape)}, query {list(query.shape)}")
    if value is not None and value.shape[:3] != key.shape[:3]:
        raise ValueError(f"[{op}] value has shape {list(value.shape)}, key {list(key.shape)}")
    if heads % kv_heads if kv_heads else heads:
        raise ValueError(f"[{op}] key has {kv_heads} heads, query {heads}: query heads must be a multiple of key heads")
    if causal not in ("none", "top_left", "bottom_right"):
        raise ValueError(f"[{op}] causal is '{causal}', expected 'none', 'top_left' or 'bottom_right'")
    if dropout_p > 0 and dropout_seed is None:
        raise ValueError(f"[{op}] dropout_seed is missing, and dropout_p is {dropout_p}")


def precision(dtype: torch.dtype, device: torch.device, features: int) -> str:
    """How tensors of this dtype and padded head size are multiplied, as tl.dot calls it: "tf32" only where products of
    other ops are too."""
    allowed = features <= LARGEST_TF32 and matmul_arithmetic(dtype, device) == "tf32"
    return "tf32" if allowed else "ieee"


def empty_in_order_of(x: Tensor, features: int) -> Tensor:
    """A new [batch, heads, length, features] laid out as x is: python/src/attention.cpp has the rule."""
    batch, heads, length, _ = x.shape
    if heads > 1 and length > 1 and x.stride(1) < x.stride(2):
        return x.new_empty(batch, length, heads, features).transpose(1, 2)
    return x.new_empty(batch, heads, length, features)


def _side(window: int, sizes: Sizes) -> int | None:
    """A window's reach, or None where no pair of positions is further apart."""
    return window if 0 <= window < sizes.q_len + sizes.kv_len else None


def _slopes(slopes: Tensor | None, batch: int, heads: int) -> Slopes:
    return Slopes(None, 0, 0) if slopes is None else Slopes(slopes, *slopes.expand(batch, heads).stride())


def _rules(scale: float, softcap: float) -> Rules:
    if softcap > 0:
        return Rules(scale / softcap, softcap * LOG2E, scale)
    return Rules(scale * LOG2E, 0.0, scale)


def needs_wide(tensor: View, length: int) -> bool:
    """Whether an offset from the first row and column that a kernel multiplies by a stride as they are may exceed 31
    bits: rows and columns of a tile, at most 1,024, and the mask's columns, all `length` of them."""
    if tensor.data is None:
        return False
    return max(abs(tensor.row) * 1024, abs(tensor.column) * max(length, 1024)) >= 2**31
