"""The softmax weights of attention."""

from collections.abc import Sequence

from torch import Tensor

from .. import backends, checks
from ..ops import direct, repeats
from .calls import call, straight_to_kernels
from .scores import as_four_dims, autocast_attention, checked_slopes, mask_of_four_dims, score_options, statistics_dtype


@repeats.repeated
def attention_weights(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool | str = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
    window: Sequence[int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    average_heads: bool = False,
    backend: str | None = None,
) -> Tensor:
    """The softmax weights of an `attention(..., return_lse=True)` call, from its query, key, lse and options.

    Args:
        query, key, mask, causal, scale, window, softcap, alibi_slopes, backend: as they were given to `attention`.
        lse: [..., heads, q_len], as `attention` returned it (sinks have entered it). Differentiable.
        dropout_p, dropout_seed: as given to `attention`; the seed is required when dropout_p > 0.
        average_heads: return the mean over the heads instead; the weights per head are then never in memory.

    Returns: [..., heads, q_len, kv_len], or [..., q_len, kv_len] with average_heads, in the query's dtype. Rows whose
    lse is -inf are 0.
    """
    straight = straight_to_kernels(query, backend)
    if not straight:
        query, key, _, mask = autocast_attention("attention_weights", query, key, None, mask)
    if not straight or query.dim() != 4:  # kernels see four dimensions
        checks.attention_tensors("attention_weights", query, key, None)
    if mask is not None:
        checks.mask("attention_weights", mask, query, key.shape[-2])
    if dropout_p != 0 or dropout_seed is not None:
        checks.dropout("attention_weights", dropout_p, dropout_seed)
    checks.per_head("attention_weights", "lse", lse, query, [query.shape[:-1]])
    if dropout_p > 0 and dropout_seed is None:
        raise ValueError("[attention_weights] dropout_seed is missing; expected the seed that attention was given")
    options = score_options("attention_weights", causal, scale, window, softcap, dropout_p)
    options["average_heads"] = bool(average_heads)
    ops = direct.OPS if straight else backends.resolve_for("attention_weights", query, backend)
    query4, key4 = (query, key) if query.dim() == 4 else as_four_dims(query, key)
    inputs = (
        query4,
        key4,
        lse.to(statistics_dtype(query)).reshape(query4.shape[:-1]),
        mask_of_four_dims(mask, query),
        checked_slopes("attention_weights", alibi_slopes, query),
        dropout_seed,
    )
    weights = call(ops, ops.attention_weights, inputs, options)
    if average_heads:
        return weights.reshape(*query.shape[:-3], query.shape[-2], key.shape[-2])
    return weights if query.dim() == 4 else weights.reshape(*query.shape[:-1], key.shape[-2])
