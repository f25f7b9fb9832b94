"""rotary: pairs of features turned by an angle, of query and key in one launch; csrc/include/bigmodel/rotary.h is the
contract. A program takes some tokens of a sequence, reads their angles once and turns some heads by them.

Positions are not looked at before: that would wait for the device. One that is no row of the tables gives NaN.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .launch import run
from .tiles import narrow

_BLOCK_TOKENS = 16
_HEADS = 4


class Tokens(NamedTuple):
    """A tensor [batch, heads, tokens, features] or, without heads, [batch, tokens, features]. data is None where it is
    absent."""

    data: Any
    batch: Any
    head: Any
    token: Any
    feature: Any


@triton.jit
def _turn(x, out, batch, head, tokens, length, head_dim, pair, pairs, cos, sin, rest, INTERLEAVED: tl.constexpr):
    """One head of some tokens; `rest`: features that do not turn."""
    rows = x.data + batch * x.batch + head * x.head + tokens[:, None] * x.token
    out_rows = out.data + batch * out.batch + head * out.head + tokens[:, None] * out.token
    first = pair * 2 if INTERLEAVED else pair
    second = first + 1 if INTERLEAVED else pair + pairs
    inside = (tokens < length)[:, None] & (pair < pairs)[None, :]
    a = tl.load(rows + first[None, :] * x.feature, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(rows + second[None, :] * x.feature, mask=inside, other=0.0).to(tl.float32)
    dtype = out.data.dtype.element_ty
    tl.store(out_rows + first[None, :] * out.feature, narrow(a * cos - b * sin, dtype), mask=inside)
    tl.store(out_rows + second[None, :] * out.feature, narrow(b * cos + a * sin, dtype), mask=inside)
    if rest is not None:
        left = (tokens < length)[:, None] & ((rest >= 2 * pairs) & (rest < head_dim))[None, :]
        kept = tl.load(rows + rest[None, :] * x.feature, mask=left, other=0.0)
        tl.store(out_rows + rest[None, :] * out.feature, kept, mask=left)


@triton.jit
def rotary_kernel(
    query,
    key,
    query_out,
    key_out,
    cos,
    sin,
    positions,
    table_rows,
    length,
    heads,
    all_heads,
    head_dim,
    pairs,
    INTERLEAVED: tl.constexpr,
    INVERSE: tl.constexpr,
    COPY_REST: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    HEADS: tl.constexpr,
):
    tokens = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    batch = tl.program_id(1).to(tl.int64)
    pair = tl.arange(0, BLOCK_PAIRS).to(tl.int64)
    rest = None
    if COPY_REST:
        rest = tl.arange(0, BLOCK_FEATURES).to(tl.int64)
    rows = tokens
    if positions.data is not None:
        at = positions.data + batch * positions.batch + tokens * positions.token
        rows = tl.load(at, mask=tokens < length, other=0)
    known = ((rows >= 0) & (rows < table_rows))[:, None] & (pair < pairs)[None, :]
    at = batch * cos.batch + rows[:, None] * cos.token + pair[None, :] * cos.feature
    c = tl.load(cos.data + at, mask=known, other=float("nan")).to(tl.float32)
    at = batch * sin.batch + rows[:, None] * sin.token + pair[None, :] * sin.feature
    s = tl.load(sin.data + at, mask=known, other=float("nan")).to(tl.float32)
    if INVERSE:
        s = -s
    for i in tl.static_range(HEADS):
        head = tl.program_id(2).to(tl.int64) * HEADS + i
        if head < heads:
            _turn(query, query_out, batch, head, tokens, length, head_dim, pair, pairs, c, s, rest, INTERLEAVED)
        if key.data is not None:  # noqa: SIM102 (known while compiling, and what follows is not)
            if (head >= heads) & (head < all_heads):
                _turn(key, key_out, batch, head - heads, tokens, length, head_dim, pair, pairs, c, s, rest, INTERLEAVED)


def rotary(
    query: Tensor,
    key: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: bool = False,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Shapes: query [batch, heads, length, head_dim], key [batch, kv_heads, length, head_dim] or None, whose output has
    then zero elements; cos, sin [rows, pairs] or [batch, length, pairs]; positions [length] or [batch, length]."""
    turned_query, turned_key = query.new_empty(query.shape), query.new_empty(0 if key is None else key.shape)
    _run(query, key, turned_query, turned_key, cos, sin, positions, interleaved, inverse)
    return turned_query, turned_key


def rotary_(
    query: Tensor,
    key: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: bool = False,
    inverse: bool = False,
) -> None:
    """The same in place."""
    _run(query, key, query, key, cos, sin, positions, interleaved, inverse)


def _run(query, key, query_out, key_out, cos, sin, positions, interleaved: bool, inverse: bool) -> None:
    batch, heads, length, head_dim = query.shape
    pairs = cos.shape[-1]
    all_heads = heads + (0 if key is None else key.shape[1])
    if batch * length * all_heads == 0:
        return
    copies_rest = query_out is not query and 2 * pairs < head_dim
    run(
        rotary_kernel,
        (triton.cdiv(length, _BLOCK_TOKENS), batch, triton.cdiv(all_heads, _HEADS)),
        _tokens(query),
        _tokens(key),
        _tokens(query_out),
        _tokens(None if key is None else key_out),
        _table(cos),
        _table(sin),
        _table(positions, features=0),
        cos.shape[-2],
        length,
        heads,
        all_heads,
        head_dim,
        pairs,
        INTERLEAVED=interleaved,
        INVERSE=inverse,
        COPY_REST=copies_rest,
        BLOCK_TOKENS=_BLOCK_TOKENS,
        BLOCK_PAIRS=triton.next_power_of_2(pairs),
        BLOCK_FEATURES=triton.next_power_of_2(head_dim),
        HEADS=_HEADS,
        num_warps=4,
    )


def _tokens(x: Tensor | None) -> Tokens:
    return Tokens(None, 0, 0, 0, 0) if x is None else Tokens(x, *x.stride())


def _table(x: Tensor | None, features: int = 1) -> Tokens:
    """[tokens, ...] or [batch, tokens, ...], with or without features."""
    if x is None:
        return Tokens(None, 0, 0, 0, 0)
    strides = x.stride() if features else (*x.stride(), 0)
    return Tokens(x, 0 if len(strides) == 2 else strides[0], 0, *strides[-2:])
