"""The softmax's probabilities of attention, recomputed from query, key and the lse of a forward pass."""

import torch
from torch import Tensor

from .attention import attention_scores
from .philox import dropout


def attention_weights(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    dropout_seed: Tensor | None = None,
    *,
    causal: str = "none",
    scale: float | None = None,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    dropout_p: float = 0.0,
    average_heads: bool = False,
) -> Tensor:
    """exp(scores - lse) with dropout, in the query's dtype: [batch, heads, q_len, kv_len], or its mean over the heads,
    [batch, 1, q_len, kv_len]. A row whose lse is -inf gives zeros. Arguments are those of attention; lse is
    [batch, heads, q_len]. A sink has already entered the lse.
    """
    scores = attention_scores(query, key, mask, alibi_slopes, causal, scale, window_left, window_right, softcap)
    empty = torch.isneginf(lse)[..., None]
    weights = torch.exp(scores - lse[..., None].masked_fill(empty, 0)).masked_fill(empty, 0)
    if dropout_p > 0:
        weights = dropout(weights, dropout_p, dropout_seed)
    if average_heads:
        weights = weights.mean(dim=1, keepdim=True)
    return weights.to(query.dtype)
