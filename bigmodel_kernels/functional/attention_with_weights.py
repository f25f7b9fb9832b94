"""Attention and its weights by one CPU kernel: csrc/cpu/attention_with_weights.cpp."""

import torch
from torch import Tensor

from .. import checks
from ..ops import direct
from .calls import may_go_straight, needs_gradient
from .scores import mask_of_four_dims

_kernel = getattr(direct.OPS, "attention_with_weights", None)
_PANEL, _ENOUGH_JOBS = 32, 32  # queries that are computed together; where there are more such jobs, several are one
_MOST_KEYS = 4096  # whose weights and mean the second-level cache holds, about: beyond, two ops are as fast
_SMALL = 1 << 18  # multiply-adds that one thread does anyway


def attention_with_weights(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool | str, average_heads: bool
) -> tuple[Tensor, Tensor] | None:
    """attention(query, key, value, mask=mask, causal=causal) and its attention_weights, [batch, heads, length,
    features] all, where one kernel computes both sooner than two ops; else None.

    It does without a gradient, for plain CPU tensors, where threads find enough to do: a job is some queries of all
    heads that are averaged.
    """
    if _kernel is None or needs_gradient((query, key, value, mask)) or not may_go_straight(query):
        return None
    batch, heads, q_len, _ = query.shape
    jobs = min(batch * -(-q_len // _PANEL) * (1 if average_heads else heads), _ENOUGH_JOBS)
    few_jobs = jobs < 2 * torch.get_num_threads() and query.numel() * key.shape[-2] > _SMALL
    if few_jobs or key.shape[-2] > _MOST_KEYS:
        return None
    if mask is not None:
        checks.mask("attention", mask, query, key.shape[-2])
        mask = mask_of_four_dims(mask, query)
    try:
        output, weights = _kernel(
            query, key, value, mask, causal=checks.causal("attention", causal), average_heads=average_heads
        )
    except (TypeError, RuntimeError):  # refused: the ops name what is wrong, or know what to do
        return None
    return output, weights.squeeze(1) if average_heads else weights
