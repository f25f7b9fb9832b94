"""Attention of packed sequences of unequal lengths."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backends, checks, reference
from ..ops import direct, repeats
from .calls import call, straight_to_kernels
from .scores import autocast_attention, score_options, statistics_dtype

_OP = "attention_varlen"


@repeats.repeated
def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
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
    """`attention` of sequences whose tokens follow each other without padding: each sees its own keys alone.

    Args:
        query: [queries, heads, head_dim]: the queries of all sequences; float32, bfloat16 or float16 (float64 runs on
            the reference).
        key: [keys, kv_heads, head_dim]; heads is a multiple of kv_heads (grouped-query attention).
        value: [keys, kv_heads, value_dim].
        cu_seqlens_q, cu_seqlens_k: [sequences + 1], int32 or int64: sequence s has the queries cu_seqlens_q[s] ...
            cu_seqlens_q[s + 1] - 1 and the keys cu_seqlens_k[s] ... cu_seqlens_k[s + 1] - 1. They begin with 0, never
            fall, and end with the number of queries and keys; a sequence may have no query or no key. On a GPU the host
            does not wait for them, unless there is a mask to check: wrong ones give wrong results there, and no error.
            Under torch.compile nobody looks at them, nor whether a mask is as long as the longest.
        mask: broadcasts to [sequences, heads, most queries of a sequence, most keys of one], as padded tensors would
            have it; a sequence takes its first rows and columns. Boolean (True: may attend), or additive in float32 or
            the query's dtype, and then differentiable.
        alibi_slopes: [heads] or [sequences, heads]. No gradient.
        causal, scale, dropout_p, dropout_seed, window, softcap, sinks, return_lse, backend: as for `attention`, with
            positions counted from each sequence's start.

    Returns: output [queries, heads, value_dim]; with return_lse also lse [heads, queries] in float32. A query that may
    see no key gives output 0, lse -inf (or the sink's logit) and zero gradients.

    Raises: what `attention` raises.

    Source: as `attention`; the packed form follows Dao et al., "FlashAttention", 2022.
    """
    inputs = (query, key, value, cu_seqlens_q, cu_seqlens_k, mask)
    straight = straight_to_kernels(query, backend)
    if not straight:
        inputs = _checked(*inputs)
        query, mask = inputs[0], inputs[5]
    if dropout_p != 0 or dropout_seed is not None:
        checks.dropout(_OP, dropout_p, dropout_seed)
    if alibi_slopes is not None:
        sequences, heads = cu_seqlens_q.shape[0] - 1, query.shape[1]
        checks.per_head(_OP, "alibi_slopes", alibi_slopes, query, [(heads,), (sequences, heads), (1, heads)])
        checks.no_gradient(_OP, "alibi_slopes", alibi_slopes)
        alibi_slopes = alibi_slopes.to(statistics_dtype(query))
    if sinks is not None:
        checks.per_head(_OP, "sinks", sinks, query, [query.shape[1:2]])
        sinks = sinks.to(statistics_dtype(query))
    options = score_options(_OP, causal, scale, window, softcap, dropout_p)
    if dropout_p > 0 and dropout_seed is None:
        dropout_seed = repeats.dropout_seed(query)
    if mask is not None:
        checks.is_tensor(_OP, "mask", mask)
        mask = mask[(None,) * (4 - mask.dim())] if mask.dim() < 4 else mask
    ops = direct.OPS if straight else backends.resolve_for(_OP, query, backend)
    if ops is reference and query.is_meta:
        raise ValueError(
            f"[{_OP}] query is on meta, and the reference needs the numbers of cu_seqlens_q; expected data"
        )
    inputs = (*inputs[:5], mask, alibi_slopes, sinks, dropout_seed)
    outputs = call(ops, ops.attention_varlen, inputs, options, returned=2 if return_lse else 1)
    return (outputs[0], outputs[1]) if return_lse else outputs[0]


def _checked(query, key, value, cu_seqlens_q, cu_seqlens_k, mask) -> tuple[Tensor | None, ...]:
    """The tensors, cast as autocast asks, once they are found right."""
    query, key, value, mask = autocast_attention(_OP, query, key, value, mask)
    checks.tensors(_OP, ("query", "key", "value"), (query, key, value))
    if query.dim() != 3 or query.shape[-1] < 1:
        raise ValueError(f"[{_OP}] query has shape {list(query.shape)}; expected [queries, heads, head_dim >= 1]")
    if key.dim() != 3 or key.shape[2] != query.shape[2]:
        raise ValueError(f"[{_OP}] key has shape {list(key.shape)}; expected [keys, kv_heads, {query.shape[2]}]")
    heads, kv_heads = query.shape[1], key.shape[1]
    checks.grouped_heads(_OP, "key", heads, kv_heads)
    if value.dim() != 3 or value.shape[:2] != key.shape[:2] or value.shape[2] < 1:
        expected = f"{[*key.shape[:2], 'value_dim']} as key has, with value_dim at least 1"
        raise ValueError(f"[{_OP}] value has shape {list(value.shape)}; expected {expected}")
    longest = [
        _longest(name, cu_seqlens, x, mask is not None)
        for name, cu_seqlens, x in (("cu_seqlens_q", cu_seqlens_q, query), ("cu_seqlens_k", cu_seqlens_k, key))
    ]
    if cu_seqlens_k.shape != cu_seqlens_q.shape:
        raise ValueError(
            f"[{_OP}] cu_seqlens_k has {cu_seqlens_k.shape[0]} entries; expected cu_seqlens_q's {cu_seqlens_q.shape[0]}"
        )
    if mask is not None and None not in longest:
        checks.mask_of_scores(_OP, mask, query, (cu_seqlens_q.shape[0] - 1, heads, *longest))
    return query, key, value, cu_seqlens_q, cu_seqlens_k, mask


def _longest(name: str, cu_seqlens: Tensor, tokens: Tensor, needed: bool) -> int | None:
    """The most tokens of a sequence; None where values cannot be seen, while a graph is traced, or would have to be
    waited for and are not needed."""
    checks.is_tensor(_OP, name, cu_seqlens)
    if cu_seqlens.layout != torch.strided or cu_seqlens.is_nested:
        raise ValueError(f"[{_OP}] {name} is nested or sparse; expected a dense tensor")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"[{_OP}] {name} has dtype {cu_seqlens.dtype}; expected int32 or int64")
    if cu_seqlens.device != tokens.device:
        raise ValueError(f"[{_OP}] {name} is on {cu_seqlens.device}, query on {tokens.device}; expected one device")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"[{_OP}] {name} has shape {list(cu_seqlens.shape)}; expected [sequences + 1]")
    if torch.compiler.is_compiling() or cu_seqlens.is_meta or (cu_seqlens.is_cuda and not needed):
        return None
    starts = cu_seqlens.tolist()
    lengths = [end - first for first, end in zip(starts, starts[1:], strict=False)]
    if starts[0] != 0 or starts[-1] != tokens.shape[0] or any(length < 0 for length in lengths):
        raise ValueError(
            f"[{_OP}] {name} is {starts if len(starts) < 20 else 'wrong'}; expected numbers that never fall, from 0 to "
            f"{tokens.shape[0]}, the number of tokens"
        )
    return max(lengths, default=0)
