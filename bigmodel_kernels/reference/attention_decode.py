"""Attention of a few new queries over a cache of keys and values: `attention` on the entries of each sequence."""

import torch
from torch import Tensor

from .attention import attention


def attention_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_lengths: Tensor,
    block_table: Tensor | None = None,
    new_key: Tensor | None = None,
    new_value: Tensor | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    sinks: Tensor | None = None,
    *,
    scale: float | None = None,
    window_left: int = -1,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The queries are the last q_len positions of their sequence and see what is before them and themselves.

    Shapes: query [batch, heads, q_len, head_dim]; caches [batch, kv_heads, capacity, dim], or pages [pages, kv_heads,
    page_size, dim] with block_table [batch, most_pages]; scales, of int8 caches, as the caches without their last
    dimension; cache_lengths [batch]; new_key and new_value [batch, kv_heads, q_len, dim], which are written to the
    caches first; sinks [heads]. Returns output [batch, heads, q_len, value_dim] in query's dtype, and lse [batch,
    heads, q_len].
    """
    batch, _, q_len, _ = query.shape
    page_size = key_cache.shape[2]
    capacity = page_size if block_table is None else block_table.shape[1] * page_size
    totals = cache_lengths.long() + (0 if new_key is None else q_len)
    if not torch.compiler.is_compiling():
        _check_places(key_cache, cache_lengths, block_table, totals, capacity, q_len, window_left)
    diagonal = totals[:, None] - q_len + torch.arange(q_len, device=query.device)
    if new_key is not None:
        places = _places(diagonal, block_table, key_cache)
        _write(key_cache, key_scales, places, new_key)
        _write(value_cache, value_scales, places, new_value)

    positions = torch.arange(capacity, device=query.device).expand(batch, capacity)
    places = _places(positions, block_table, key_cache)
    seen = positions[:, None] <= diagonal[:, :, None]
    if window_left >= 0:
        seen = seen & (positions[:, None] >= diagonal[:, :, None] - window_left)
    used = seen.any(1)
    key = _read(key_cache, key_scales, places, used, query.dtype)
    value = _read(value_cache, value_scales, places, used, query.dtype)
    output, lse = attention(query.to(key.dtype), key, value, seen[:, None], None, sinks, scale=scale, softcap=softcap)
    return output.to(query.dtype), lse


def _places(positions: Tensor, block_table: Tensor | None, cache: Tensor) -> tuple[Tensor, Tensor]:
    """Where positions [batch, n] are in the cache: indices of its dimensions 0 and 2. Those that no query sees may be
    anywhere."""
    if block_table is None:
        return torch.arange(len(positions), device=positions.device)[:, None].expand_as(positions), positions
    page_size = cache.shape[2]
    pages = block_table.long().gather(1, positions.clamp(min=0) // page_size)
    return pages.clamp(0, max(cache.shape[0] - 1, 0)), positions % page_size


def _write(cache: Tensor, scales: Tensor | None, places: tuple[Tensor, Tensor], rows: Tensor) -> None:
    pages, slots = places
    rows = rows.transpose(1, 2)  # as the indexed cache is: [batch, q_len, kv_heads, dim]
    if scales is not None:
        rows, row_scales = _quantized(rows)
        scales[pages, :, slots] = row_scales.to(scales.dtype)
    cache[pages, :, slots] = rows.to(cache.dtype)


def _quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """In float32 whatever the dtype: the rounded numbers are part of the contract."""
    rows = rows.float()
    scales = rows.abs().amax(-1) / 127
    whole = torch.round(rows / scales[..., None]).clamp(-127, 127)
    return torch.where(scales[..., None] > 0, whole, 0), scales


def _read(
    cache: Tensor, scales: Tensor | None, places: tuple[Tensor, Tensor], used: Tensor, dtype: torch.dtype
) -> Tensor:
    """[batch, kv_heads, capacity, dim], 0 where unused, in the wider of the cache's dtype and `dtype`."""
    pages, slots = places
    rows = cache[pages, :, slots].transpose(1, 2)
    if scales is None:
        rows = rows.to(torch.promote_types(rows.dtype, dtype))
    else:
        rows = (rows.to(scales.dtype) * scales[pages, :, slots].transpose(1, 2)[..., None]).to(dtype)
    return rows.masked_fill(~used[:, None, :, None], 0)


def _check_places(key_cache, cache_lengths, block_table, totals, capacity: int, q_len: int, window_left: int) -> None:
    """Every key that is seen or written is in the cache."""
    for b, (length, total) in enumerate(zip(cache_lengths.tolist(), totals.tolist(), strict=True)):
        if length < 0 or total > capacity:
            raise ValueError(
                f"[attention_decode] cache_lengths[{b}] is {length} and the call adds {total - length}; expected 0 to "
                f"{capacity} keys in all, the capacity"
            )
        if block_table is None:
            continue
        first = max(total - q_len - window_left, 0) if window_left >= 0 else 0
        page_size = key_cache.shape[2]
        for page in range(first // page_size, -(-total // page_size)):
            at = int(block_table[b, page])
            if not 0 <= at < key_cache.shape[0]:
                raise ValueError(
                    f"[attention_decode] block_table[{b}, {page}] is {at}; expected 0 to {key_cache.shape[0] - 1}, a "
                    "page of the cache"
                )
