"""Scaled dot-product attention."""

from collections.abc import Sequence

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import backends, checks
from ..ops import direct, repeats, shortcut
from ..ops.attention import plain
from .calls import call, straight_to_kernels
from .scores import as_four_dims, autocast_attention, checked_slopes, mask_of_four_dims, score_options, statistics_dtype

_PLAIN = (
    shortcut.Option("causal", tuple(checks.CAUSAL.items())),
    shortcut.Option("scale", number=True),
    shortcut.Option("softcap", ((None, 0.0), (0.0, 0.0))),
    shortcut.Option("dropout_p", ((0.0, 0.0),)),
    shortcut.Option("return_lse", ((False, False),)),
    *(shortcut.Option(name) for name in ("mask", "dropout_seed", "window", "alibi_slopes", "sinks", "backend")),
)
_DEFAULTS = {"causal": "none", "scale": None, "window_left": -1, "window_right": -1, "softcap": 0.0, "dropout_p": 0.0}


_answered = shortcut.answers(
    "attention", 3, _PLAIN, _DEFAULTS, backends.forced, op_tensors=7, recorded=plain, first=True
)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool | str = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
    window: Sequence[int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention, softmax(scores) value, without holding the scores in memory.

    The score of query i and key j is built in this order: scale * dot(query[i], key[j]); softcap; minus ALiBi; plus
    the additive mask; -inf where causal, window or a boolean mask remove the key. The diagonal d(i) is i for causal
    "top_left" and i + kv_len - q_len otherwise.

    Args:
        query: [..., heads, q_len, head_dim]; float32, bfloat16 or float16 (float64 runs on the reference).
        key: [..., kv_heads, kv_len, head_dim]; heads is a multiple of kv_heads (grouped-query attention).
        value: [..., kv_heads, kv_len, value_dim]. Two-dimensional query, key and value are one head.
        mask: broadcasts to [..., heads, q_len, kv_len]; boolean (True: may attend), or additive in float32 or the
            query's dtype, and then differentiable.
        causal: False; True or "top_left" (as torch aligns it); "bottom_right" (as caches need it): keeps j <= d(i).
        scale: factor of the dot products; None: 1 / sqrt(head_dim).
        dropout_p: probability of dropping a softmax weight, in [0, 1); applies whenever it is > 0.
        dropout_seed: int64 tensor of 0 dimensions; None draws one from torch's default generator.
        window: (left, right) keeps d(i) - left <= j <= d(i) + right; None or -1 leaves a side unbounded.
        softcap: c turns a score into c * tanh(score / c) (Gemma 2); None or 0: off.
        alibi_slopes: [heads] or [batch, heads]: subtracts slope * |d(i) - j| (Press et al., 2022). No gradient.
        sinks: [heads]: a logit per head in the softmax's denominator and the lse (Xiao et al., 2023).
        return_lse: also return the logarithm of the softmax's denominator.
        backend: a backend's name (see `use_backend`), or None.

    Returns: output [..., heads, q_len, value_dim]; with return_lse also lse [..., heads, q_len] in float32. A query
    that may see no key gives output 0, lse -inf (or the sink's logit) and zero gradients.

    Source: Vaswani et al., "Attention is all you need", 2017; Dao et al., "FlashAttention", 2022.
    """
    if not is_dynamo_compiling():
        output = _answered(
            *(query, key, value, causal, scale, softcap, dropout_p, return_lse),
            *(mask, dropout_seed, window, alibi_slopes, sinks, backend),
        )
        if output is not NotImplemented:
            return output
    return _attention(
        *(query, key, value),
        mask=mask,
        causal=causal,
        scale=scale,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        window=window,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        return_lse=return_lse,
        backend=backend,
    )


@repeats.repeated
def _attention(
    query,
    key,
    value,
    *,
    mask,
    causal,
    scale,
    dropout_p,
    dropout_seed,
    window,
    softcap,
    alibi_slopes,
    sinks,
    return_lse,
    backend,
):
    straight = straight_to_kernels(query, backend)
    if not straight:
        query, key, value, mask = autocast_attention("attention", query, key, value, mask)
    four_dims = query.dim() == 4
    if not straight or not four_dims:
        checks.is_tensor("attention", "value", value)
        checks.attention_tensors("attention", query, key, value)
    if mask is not None:
        checks.mask("attention", mask, query, key.shape[-2])
    if dropout_p != 0 or dropout_seed is not None:
        checks.dropout("attention", dropout_p, dropout_seed)
    if sinks is not None:
        checks.per_head("attention", "sinks", sinks, query, [query.shape[-3:-2] or (1,)])
        sinks = sinks.to(statistics_dtype(query))
    options = score_options("attention", causal, scale, window, softcap, dropout_p)
    if dropout_p > 0 and dropout_seed is None:
        dropout_seed = repeats.dropout_seed(query)
    ops = direct.OPS if straight else backends.resolve_for("attention", query, backend)
    inputs = (
        *((query, key, value) if four_dims else as_four_dims(query, key, value)),
        mask if mask is None else mask_of_four_dims(mask, query),
        alibi_slopes if alibi_slopes is None else checked_slopes("attention", alibi_slopes, query),
        sinks,
        dropout_seed,
    )
    outputs = call(ops, ops.attention, inputs, options, returned=2 if return_lse else 1)
    output = outputs[0] if four_dims else outputs[0].reshape(*query.shape[:-1], value.shape[-1])
    return (output, outputs[1].reshape(query.shape[:-1])) if return_lse else output
