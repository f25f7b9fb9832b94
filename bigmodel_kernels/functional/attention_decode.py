"""Attention of a few new queries over a cache of keys and values."""

import torch
from torch import Tensor

from .. import backends, checks
from ..ops import direct, repeats
from .autocast import autocast, autocast_dtype
from .calls import call, needs_gradient, straight_to_kernels
from .scores import statistics_dtype

_OP = "attention_decode"
_CACHE_DTYPES = (*backends.REFERENCE_DTYPES, torch.int8)


@repeats.repeated
def attention_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_lengths: Tensor,
    *,
    block_table: Tensor | None = None,
    new_key: Tensor | None = None,
    new_value: Tensor | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`attention` of the last q_len positions of each sequence over its cached keys and values: a step of generation.

    Sequence b has total = cache_lengths[b] keys, or cache_lengths[b] + q_len with new_key and new_value, which this
    call first writes to the caches, in place, at the positions cache_lengths[b] ... total - 1; cache_lengths itself
    stays as it is. Query i is at d(i) = total - q_len + i and sees the keys d(i) - window <= j <= d(i).

    Args:
        query: [batch, heads, q_len, head_dim]; float32, bfloat16 or float16 (float64 runs on the reference).
        key_cache, value_cache: [batch, kv_heads, capacity, head_dim or value_dim], the last dimension contiguous;
            float32, bfloat16, float16 or int8, whatever the query's dtype. heads is a multiple of kv_heads. With
            block_table they are pages: [pages, kv_heads, page_size, head_dim or value_dim].
        cache_lengths: [batch], int32 or int64: how many keys of each sequence are in the cache before this call.
        block_table: [batch, most_pages], int32 or int64: key j of sequence b is entry j % page_size of page
            block_table[b, j // page_size]. Entries that no key needs may hold anything.
        new_key, new_value: [batch, kv_heads, q_len, head_dim or value_dim], in the query's dtype; both or neither. With
            them caches and scales need memory of their own for every element; without, they may be expanded.
        key_scales, value_scales: of int8 caches, float32, the caches' shapes without their last dimension: an entry is
            its integers times its scale. New rows get scale = max|x| / 127 and round(x / scale).
        scale, softcap, sinks, return_lse: as for `attention`.
        window: how many keys before its own position a query sees; None or -1: all.
        backend: a backend's name (see `use_backend`), or None.

    Returns: output [batch, heads, q_len, value_dim] in the query's dtype; with return_lse also lse [batch, heads,
    q_len] in float32. A query that sees no key gives output 0 and lse -inf (or the sink's logit).

    There is no gradient: an input that requires one is refused while gradients are recorded.

    Raises: ValueError, and what `attention` raises; a length beyond the capacity, or a page that does not exist, is a
    RuntimeError of the kernel, raised before anything is written.
    """
    inputs = (query, key_cache, value_cache, cache_lengths, block_table, new_key, new_value, key_scales, value_scales)
    straight = straight_to_kernels(query, backend)
    if not straight:
        inputs = _checked(*inputs)
        query = inputs[0]
    if sinks is not None:
        checks.per_head(_OP, "sinks", sinks, query, [query.shape[1:2]])
        sinks = sinks.to(statistics_dtype(query))
    inputs = (*inputs, sinks)
    if needs_gradient(inputs):
        raise ValueError(
            f"[{_OP}] an input requires a gradient, which this op does not have; expected torch.no_grad(), or "
            "detached tensors (attention has gradients)"
        )
    options = {
        "scale": None if scale is None else checks.finite(_OP, "scale", scale),
        "window_left": checks.window(_OP, (window, None))[0],
        "softcap": 0.0 if softcap is None else checks.finite(_OP, "softcap", softcap, minimum=0),
    }
    ops = direct.OPS if straight else backends.resolve_for(_OP, query, backend)
    output, lse = call(ops, ops.attention_decode, inputs, options, returned=2)
    if new_key is not None and not torch.compiler.is_compiling():
        written = [x for x in (key_cache, value_cache, key_scales, value_scales) if x is not None]
        torch.autograd.graph.increment_version([x for x in written if not x.is_inference()])
    return (output, lse) if return_lse else output


def _checked(
    query, key_cache, value_cache, cache_lengths, block_table, new_key, new_value, key_scales, value_scales
) -> tuple[Tensor | None, ...]:
    """The tensors, cast as autocast asks, once they are found right."""
    checks.is_tensor(_OP, "query", query)
    dtype = autocast_dtype(query)
    if dtype is not None:
        query, new_key, new_value = (autocast(dtype, x) for x in (query, new_key, new_value))
    checks.tensors(_OP, ("query", "new_key", "new_value"), (query, new_key, new_value), optional=1)
    if query.dim() != 4 or query.shape[-1] < 1:
        raise ValueError(f"[{_OP}] query has shape {list(query.shape)}; expected [batch, heads, q_len, head_dim >= 1]")
    batch, heads, q_len, head_dim = query.shape
    _check_caches(query, key_cache, value_cache, block_table is not None)
    pages, kv_heads, page_size, value_dim = value_cache.shape
    if (new_key is None) != (new_value is None):
        raise ValueError(f"[{_OP}] new_key and new_value: one is given without the other")
    checks.shape(_OP, "new_key", new_key, (batch, kv_heads, q_len, head_dim))
    checks.shape(_OP, "new_value", new_value, (batch, kv_heads, q_len, value_dim))
    _check_indices("cache_lengths", cache_lengths, query, (batch,))
    if block_table is not None:
        checks.is_tensor(_OP, "block_table", block_table)
        most_pages = block_table.shape[1] if block_table.dim() == 2 else "most_pages"
        _check_indices("block_table", block_table, query, (batch, most_pages))
    for name, scales in (("key_scales", key_scales), ("value_scales", value_scales)):
        if (scales is not None) != (key_cache.dtype == torch.int8):
            wrong = "missing; expected those of int8" if scales is None else "given, but the cache is not int8"
            raise ValueError(f"[{_OP}] {name} is {wrong}")
        if scales is not None:
            checks.per_head(_OP, name, scales, query, [(pages, kv_heads, page_size)])
            if scales.dtype != statistics_dtype(query):
                raise ValueError(f"[{_OP}] {name} has dtype {scales.dtype}; expected {statistics_dtype(query)}")
    if new_key is not None:
        written = {"key_cache": key_cache, "value_cache": value_cache}
        for name, x in (written | {"key_scales": key_scales, "value_scales": value_scales}).items():
            checks.memory_of_its_own(_OP, name, x)
    return query, key_cache, value_cache, cache_lengths, block_table, new_key, new_value, key_scales, value_scales


def _check_caches(query: Tensor, key: Tensor, value: Tensor, paged: bool) -> None:
    batch, heads, _, head_dim = query.shape
    for name, cache in (("key_cache", key), ("value_cache", value)):
        checks.is_tensor(_OP, name, cache)
        if cache.device != query.device:
            raise ValueError(f"[{_OP}] {name} is on {cache.device}, query on {query.device}; expected one device")
        if cache.layout != torch.strided or cache.is_nested:
            raise ValueError(f"[{_OP}] {name} is nested or sparse; expected a dense tensor")
        if cache.dtype not in _CACHE_DTYPES:
            raise ValueError(f"[{_OP}] {name} has dtype {cache.dtype}; expected float32, bfloat16, float16 or int8")
    first = "pages" if paged else batch
    if key.dim() != 4 or key.shape[3] != head_dim or not (paged or key.shape[0] == batch):
        expected = f"[{first}, kv_heads, {'page_size' if paged else 'capacity'}, {head_dim}]"
        raise ValueError(f"[{_OP}] key_cache has shape {list(key.shape)}; expected {expected}")
    kv_heads = key.shape[1]
    checks.grouped_heads(_OP, "key_cache", heads, kv_heads)
    if value.dim() != 4 or value.shape[:3] != key.shape[:3] or value.shape[3] < 1:
        raise ValueError(
            f"[{_OP}] value_cache has shape {list(value.shape)}; expected {[*key.shape[:3], 'value_dim']} as key_cache "
            "has, with value_dim at least 1"
        )
    if paged and key.shape[2] < 1:
        raise ValueError(f"[{_OP}] key_cache has pages of 0 keys; expected at least 1")
    if value.dtype != key.dtype:
        raise ValueError(f"[{_OP}] value_cache has dtype {value.dtype}, key_cache {key.dtype}; expected one dtype")
    for name, cache in (("key_cache", key), ("value_cache", value)):
        if cache.stride(3) != 1 and cache.shape[3] != 1 and cache.numel() > 0:
            raise ValueError(f"[{_OP}] {name} has a last dimension that is not contiguous; expected contiguous rows")


def _check_indices(name: str, value: Tensor, query: Tensor, shape: tuple) -> None:
    checks.is_tensor(_OP, name, value)
    if value.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"[{_OP}] {name} has dtype {value.dtype}; expected int32 or int64")
    if value.device != query.device:
        raise ValueError(f"[{_OP}] {name} is on {value.device}, query on {query.device}; expected one device")
    checks.shape(_OP, name, value, shape)
