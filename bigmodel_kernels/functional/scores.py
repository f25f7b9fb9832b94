"""What the functions that build attention scores share: their options, and tensors of four dimensions."""

import torch
from torch import Tensor

from .. import checks
from .autocast import autocast, autocast_dtype


def autocast_attention(op: str, query: Tensor, key: Tensor, value: Tensor | None, mask: Tensor | None):
    checks.is_tensor(op, "query", query)
    dtype = autocast_dtype(query)
    if dtype is None:
        return query, key, value, mask
    if isinstance(mask, Tensor) and mask.dtype != torch.float32:  # a float32 mask keeps its range
        mask = autocast(dtype, mask)
    return autocast(dtype, query), autocast(dtype, key), autocast(dtype, value), mask


def score_options(op: str, causal, scale, window, softcap, dropout_p: float) -> dict:
    left, right = (-1, -1) if window is None else checks.window(op, window)
    return {
        "causal": "none" if causal is False else checks.causal(op, causal),
        "scale": None if scale is None else checks.finite(op, "scale", scale),
        "window_left": left,
        "window_right": right,
        "softcap": 0.0 if softcap is None else checks.finite(op, "softcap", softcap, minimum=0),
        "dropout_p": dropout_p,
    }


def statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def as_four_dims(*tensors: Tensor) -> list[Tensor]:
    """Tensors [..., heads, length, features], all of the first's dimensions, as [batch, heads, length, features]."""
    dims = tensors[0].dim()
    return [x[(None,) * (4 - dims)] if dims < 4 else x.flatten(0, -4) for x in tensors]


def mask_of_four_dims(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """A mask that broadcasts to query's scores, with its leading dimensions flattened as the query's are."""
    if mask is None or mask.dim() == 4 >= query.dim():
        return mask
    if mask.dim() < 4:
        return mask[(None,) * (4 - mask.dim())]
    leading = (1,) * (query.dim() - mask.dim()) + mask.shape[:-3]
    if all(size == 1 for size in leading):
        return mask.reshape(1, *mask.shape[-3:])
    return mask.expand(*query.shape[:-3], *mask.shape[-3:]).flatten(0, -4)


def checked_slopes(op: str, slopes: Tensor | None, query: Tensor) -> Tensor | None:
    if slopes is None:
        return None
    heads = query.shape[-3] if query.dim() > 2 else 1
    batch = query.shape[:-3].numel()
    checks.per_head(op, "alibi_slopes", slopes, query, [(heads,), (batch, heads), (1, heads)])
    checks.no_gradient(op, "alibi_slopes", slopes)
    return slopes.to(statistics_dtype(query))
