"""Rotary position embedding (Su et al., "RoFormer", 2021)."""

import torch
from torch import Tensor


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
    """Turns pairs (a, b) of each head's first features to (a cos - b sin, b cos + a sin); the others stay.

    Shapes: query [batch, heads, length, head_dim]; key [batch, kv_heads, length, head_dim] or None, and then the
    second output has zero elements; cos, sin [rows, pairs] or, without positions, [batch, length, pairs]; positions
    [length] or [batch, length] in int64: rows of cos and sin, 0, 1, ... by default. Pair i is features (i, i + pairs),
    or interleaved (2 i, 2 i + 1). inverse: by the negative angle.
    """
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    elif cos.dim() == 2:
        cos, sin = cos[: query.shape[-2]], sin[: query.shape[-2]]
    # [length, pairs] or [batch, 1, length, pairs]
    cos, sin = (x if x.dim() == 2 else x[:, None] for x in (cos, sin))
    turned = [
        query.new_empty(0) if x is None else _turned(x, cos, -sin if inverse else sin, interleaved)
        for x in (query, key)
    ]
    return turned[0], turned[1]


def rotary_(query: Tensor, key: Tensor | None, *tables: Tensor | None, **options) -> None:
    """The same in place."""
    turned_query, turned_key = rotary(query, key, *tables, **options)
    query.copy_(turned_query)
    if key is not None:
        key.copy_(turned_key)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    pairs = cos.shape[-1]
    turning, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    a, b = (turning[..., ::2], turning[..., 1::2]) if interleaved else turning.chunk(2, dim=-1)
    turned = a * cos - b * sin, b * cos + a * sin
    joined = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    return torch.cat([joined.to(x.dtype), rest], dim=-1)
