"""Scaled dot-product attention, from the formula (Vaswani et al., "Attention is all you need", 2017)."""

import torch
from torch import Tensor

from .philox import dropout


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_seed: Tensor | None = None,
    *,
    causal: str = "none",
    scale: float | None = None,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    dropout_p: float = 0.0,
    first_batch: int = 0,
) -> tuple[Tensor, Tensor]:
    """softmax(scores) value, and the log of the softmax's denominator.

    Shapes: query [batch, heads, q_len, head_dim]; key [batch, kv_heads, kv_len, head_dim]; value [batch, kv_heads,
    kv_len, value_dim]; mask broadcastable to [batch, heads, q_len, kv_len]; alibi_slopes to [batch, heads]; sinks
    [heads]. Returns output [batch, heads, q_len, value_dim] and lse [batch, heads, q_len] (fp32, or fp64 with fp64).
    A query that keeps no key gives output 0, lse -inf (or the sink's logit) and zero gradients. first_batch: the batch
    index that dropout takes for the first one, of which the schema knows nothing.
    """
    scores = attention_scores(query, key, mask, alibi_slopes, causal, scale, window_left, window_right, softcap)
    # A sink is one more key, with a logit of its own and no value; without sinks it is a key that nobody attends to.
    sink = scores.new_full((), -torch.inf) if sinks is None else sinks[:, None, None]
    logits = torch.cat([scores, sink.expand(*scores.shape[:-1], 1)], dim=-1)
    empty = torch.isneginf(logits).all(dim=-1, keepdim=True)
    logits = logits.masked_fill(empty, 0)
    lse = torch.logsumexp(logits.to(_lse_dtype(query)), dim=-1).masked_fill(empty.squeeze(-1), -torch.inf)
    weights = torch.softmax(logits, dim=-1)[..., :-1].masked_fill(empty, 0).to(value.dtype)
    if dropout_p > 0:
        weights = dropout(weights, dropout_p, dropout_seed, first_batch)
    return weights @ repeat_heads(value, query.shape[1]), lse


def attention_scores(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    alibi_slopes: Tensor | None,
    causal: str,
    scale: float | None,
    window_left: int,
    window_right: int,
    softcap: float,
) -> Tensor:
    """The argument of the softmax, [batch, heads, q_len, kv_len], with -inf where a query may not see a key.

    The order of operations is part of the contract: scale, softcap, ALiBi, additive mask, removals.
    """
    batch, heads, q_len, head_dim = query.shape
    kv_len = key.shape[2]
    scale = head_dim**-0.5 if scale is None else scale
    scores = scale * (query @ repeat_heads(key, heads).transpose(-2, -1))
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)

    diagonal = torch.arange(q_len, device=query.device)[:, None] + (0 if causal == "top_left" else kv_len - q_len)
    distance = torch.arange(kv_len, device=query.device) - diagonal
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.expand(batch, heads)[:, :, None, None] * distance.abs()
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask

    removed = torch.zeros((), dtype=torch.bool, device=query.device)
    if causal != "none":
        removed = removed | (distance > 0)
    if window_left >= 0:
        removed = removed | (distance < -window_left)
    if window_right >= 0:
        removed = removed | (distance > window_right)
    if mask is not None and mask.dtype == torch.bool:
        removed = removed | ~mask
    return scores.masked_fill(removed, -torch.inf)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Key or value [batch, kv_heads, ...] as [batch, heads, ...]: query head h reads kv head h / (heads / kv_heads)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _lse_dtype(query: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32
