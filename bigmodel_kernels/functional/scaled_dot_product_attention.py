"""torch's own function of attention."""

import torch
from torch import Tensor

from .. import checks
from .attention import attention


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, with its signature and meaning, on our kernels.

    Shapes as there: query [..., heads, q_len, head_dim]; key and value likewise, their leading dimensions broadcast;
    with enable_gqa their heads divide the query's. is_causal aligns at the top left. Rows whose mask removes every key
    give 0, and so do all with dropout_p=1.

    Raises: ValueError if attn_mask and is_causal are both given, and what `attention` raises.
    """
    op = "scaled_dot_product_attention"
    checks.tensors(op, ("query", "key", "value"), (query, key, value), same_dtype=False)
    if attn_mask is not None and is_causal:
        raise ValueError(f"[{op}] attn_mask and is_causal are both given; expected at most one of them")
    dims = max(query.dim(), key.dim(), value.dim())
    if min(query.dim(), key.dim(), value.dim()) < 2:
        raise ValueError(f"[{op}] query, key and value have at least 2 dimensions, [..., length, features]")
    if query.dim() == key.dim() == value.dim() == 4 and query.shape[0] == key.shape[0] == value.shape[0]:
        same_heads = query.shape[1] == key.shape[1] == value.shape[1]
    else:
        same_heads = False
    if not same_heads and dims > 2:
        query, key, value = _broadcast_leading(op, query, key, value, enable_gqa)
    options = {"mask": attn_mask, "causal": is_causal, "scale": scale}
    if dropout_p == 1:  # the ops scale by 1 / (1 - p)
        return attention(query, key, value, **options) * 0.0
    return attention(query, key, value, **options, dropout_p=dropout_p)


def _broadcast_leading(op: str, query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool):
    """Leading dimensions broadcast as torch.matmul's; heads too, unless grouped queries give them another meaning."""
    dims = max(query.dim(), key.dim(), value.dim())
    query, key, value = (x[(None,) * (dims - x.dim())] for x in (query, key, value))
    kept = 3 if enable_gqa else 2
    try:
        leading = torch.broadcast_shapes(*(x.shape[:-kept] for x in (query, key, value)))
    except RuntimeError:
        shapes = ", ".join(str(list(x.shape)) for x in (query, key, value))
        hint = "" if enable_gqa else " (enable_gqa=True groups the query's heads)"
        raise ValueError(
            f"[{op}] query, key and value have shapes {shapes}, whose leading dimensions do not broadcast{hint}"
        ) from None
    return (x.expand(*leading, *x.shape[-kept:]) for x in (query, key, value))
