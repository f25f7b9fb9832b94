"""A step of generation: a few new queries over a cache, contiguous or in pages (Kwon et al., "Efficient memory
management for large language model serving with PagedAttention", 2023); csrc/include/bigmodel/attention_decode.h is the
contract.

The queries of all heads of a group are the rows of one tile, so that the cache is read once for all of them. The keys
of a sequence are split among programs where sequences and heads alone would not fill the device (Dao, Haziza, Massa
and Sizov, "Flash-Decoding for long-context inference", 2023). Lengths and block tables are read on the device, which
the host does not wait for: what does not fit the cache is not refused here. A query that sees a key that is not there
gives NaN; one of a sequence of less than no keys sees none.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_forward import _merge_kernel, _split_range
from .attention_inputs import Sizes, View, empty_in_order_of, padded, precision, view
from .attention_launch import device_of, key_splits
from .launch import family, run
from .matrices import vector
from .online_softmax import add_sink, finish_softmax, start_softmax, update_softmax
from .scores import LOG2E, tanh
from .tiles import load_tile, narrow, product, store_tile

# Rows of a tile; and keys, as many as the registers hold: without tensor cores a thread holds what it multiplies.
_FEWEST_ROWS, _MOST_ROWS = 16, 64
_KEYS, _KEYS_WITHOUT_TENSOR_CORES = 64, 16
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
# Adding and subtracting it rounds a small number to a whole one, half to even.
_ROUNDS = tl.constexpr(12582912.0)


class Cache(NamedTuple):
    """Entries [batch or pages, kv_heads, slots, features] and, of int8, their scales [batch or pages, kv_heads, slots];
    the features of an entry follow each other."""

    data: Any
    page: Any
    head: Any
    slot: Any
    scales: Any
    scale_page: Any
    scale_head: Any
    scale_slot: Any


class Places(NamedTuple):
    """Where a sequence's keys are: lengths [batch] before the call, and a block table [batch, most_pages] whose data is
    None for contiguous caches. pages: of the cache; page_size: entries of a page, or the capacity."""

    lengths: Any
    length_stride: Any
    table: Any
    table_batch: Any
    table_page: Any
    pages: Any
    page_size: Any
    capacity: Any


@triton.jit
def _find(places, batch, position, wanted):
    """(page, slot, whether there is such an entry) of positions of a sequence, where wanted."""
    exists = wanted & (position >= 0) & (position < places.capacity)
    page = batch + position * 0
    slot = position
    if places.table is not None:
        at = batch * places.table_batch + position // places.page_size * places.table_page
        page = tl.load(places.table + at, mask=exists, other=-1).to(tl.int64)
        slot = position % places.page_size
        exists = exists & (page >= 0) & (page < places.pages)
    return page, slot, exists


@triton.jit
def _append_kernel(new, cache, places, q_len, features, BLOCK: tl.constexpr):
    """Writes one new row of one head to the cache."""
    batch = (tl.program_id(0) // q_len).to(tl.int64)
    row = (tl.program_id(0) % q_len).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    at = tl.arange(0, BLOCK)
    pointers = new.data + batch * new.batch + head * new.head + row * new.row + at * new.column
    x = tl.load(pointers, mask=at < features, other=0.0).to(tl.float32)
    position = tl.load(places.lengths + batch * places.length_stride).to(tl.int64) + row
    page, slot, exists = _find(places, batch, position, True)
    out = cache.data + page * cache.page + head * cache.head + slot * cache.slot + at
    inside = (at < features) & exists
    if cache.scales is not None:
        scale = tl.div_rn(tl.max(tl.abs(x), 0), 127.0)
        whole = tl.div_rn(x, tl.where(scale > 0, scale, 1.0)) + _ROUNDS - _ROUNDS
        whole = tl.where(scale > 0, tl.minimum(tl.maximum(whole, -127.0), 127.0), 0.0)
        tl.store(out, whole.to(tl.int8), mask=inside)
        scale_at = page * cache.scale_page + head * cache.scale_head + slot * cache.scale_slot
        tl.store(cache.scales + scale_at, scale, mask=exists)
    else:
        tl.store(out, narrow(x, cache.data.dtype.element_ty), mask=inside)


@triton.jit
def _converted(x, dtype: tl.constexpr):
    """x in dtype; untouched where it has it already, so that what is loaded goes to the product as it is."""
    if x.dtype != dtype:
        x = narrow(x.to(tl.float32), dtype)
    return x


@triton.jit
def _scales(cache, page, head, slot, exists):
    """Of entries of an int8 cache; NaN of those that do not exist."""
    at = page * cache.scale_page + head * cache.scale_head + slot * cache.scale_slot
    return tl.load(cache.scales + at, mask=exists, other=float("nan"))


@triton.jit
def _attention_decode_kernel(
    query,
    key_cache,
    value_cache,
    places,
    output,
    lse,
    sinks,
    sizes,
    added,
    window,
    scale,
    cap,
    splits,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """A tile of rows, the queries of all heads of a group, over a part of their sequence's keys. scale and cap in units
    of log2, as attention's Rules. SPLIT: the result is for _merge_kernel, as attention's forward kernel leaves it."""
    batch = tl.program_id(1).to(tl.int64)
    row_count = sizes.q_len * sizes.group
    tiles = tl.cdiv(row_count, BLOCK_M)
    kv_head = (tl.program_id(0) // tiles).to(tl.int64)
    rows = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    row = tl.minimum(rows, row_count - 1)
    head = kv_head * sizes.group + row // sizes.q_len
    token = (row % sizes.q_len).to(tl.int64)

    total = tl.load(places.lengths + batch * places.length_stride).to(tl.int64) + added
    diagonal = total - sizes.q_len + token
    end = tl.minimum(total, places.capacity + 1)  # the one beyond stands for all that are not there
    lowest = total * 0  # the first key that any query sees
    if WINDOW:
        lowest = tl.maximum(total - sizes.q_len - window, 0)
    first = lowest // BLOCK_N * BLOCK_N
    split = tl.program_id(2)
    if SPLIT:
        first, end = _split_range(first, end, split, splits, BLOCK_N)

    d = tl.arange(0, BLOCK_D)
    v = tl.arange(0, BLOCK_V)
    pointers = query.data + batch * query.batch + head * query.head + token * query.row + d[None, :] * query.column
    q = load_tile(pointers, rows, row_count, d[None, :], sizes.head_dim, False, True)
    q = _converted(q, COMPUTE)
    accumulator = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    maximum, weight_sum = start_softmax(BLOCK_M)
    for start in range(first, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        wanted = (n >= lowest) & (n < end)
        page, slot, exists = _find(places, batch, n, wanted)
        at = page * key_cache.page + kv_head * key_cache.head + slot * key_cache.slot
        k = tl.load(
            key_cache.data + at[None, :] + d[:, None],
            mask=exists[None, :] & (d < sizes.head_dim)[:, None],
            other=0,
        )
        scores = product(q, _converted(k, COMPUTE), None, PRECISION) * scale
        if key_cache.scales is not None:
            scores *= _scales(key_cache, page, kv_head, slot, exists)[None, :]
        if SOFTCAP:
            scores = cap * tanh(scores)
        seen = wanted[None, :] & (n[None, :] <= diagonal)
        if WINDOW:
            seen = seen & (n[None, :] >= diagonal - window)
        scores = tl.where(exists[None, :], scores, float("nan"))
        scores = tl.where(seen, scores, float("-inf"))
        weights, maximum, weight_sum, rescale = update_softmax(scores, 1.0, maximum, weight_sum)
        accumulator *= rescale[:, None]
        at = page * value_cache.page + kv_head * value_cache.head + slot * value_cache.slot
        x = tl.load(
            value_cache.data + at[:, None] + v[None, :],
            mask=exists[:, None] & (v < sizes.value_dim)[None, :],
            other=0,
        )
        if value_cache.scales is not None:
            # On the value, not on the weight: their product with a small scale is below fp16's smallest number.
            value_scales = tl.where(exists, _scales(value_cache, page, kv_head, slot, exists), 0.0)
            x = x.to(tl.float32) * value_scales[:, None]
        accumulator = product(narrow(weights, COMPUTE), _converted(x, COMPUTE), accumulator, PRECISION)

    if SINKS and not SPLIT:
        sink = tl.reshape(tl.load(sinks.data + head * sinks.stride), (BLOCK_M,))
        maximum, weight_sum, rescale = add_sink(maximum, weight_sum, sink)
        accumulator *= rescale[:, None]
    factor, row_lse = finish_softmax(maximum, weight_sum)
    if SPLIT:
        batch += split * sizes.batch
    out = output.data + batch * output.batch + head * output.head + token * output.row
    store_tile(out + v[None, :], accumulator * factor[:, None], rows, row_count, v[None, :], sizes.value_dim)
    tl.store(lse.data + batch * lse.batch + head * lse.head + token, row_lse[:, None], mask=rows < row_count)


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
    """Shapes: query [batch, heads, q_len, head_dim]; caches [batch, kv_heads, capacity, dim], or pages [pages,
    kv_heads, page_size, dim] with block_table [batch, most_pages]; scales as the caches without their last dimension;
    cache_lengths [batch]; new_key and new_value [batch, kv_heads, q_len, dim]; sinks [heads]. Returns output [batch,
    heads, q_len, value_dim] in query's dtype and lse [batch, heads, q_len] in fp32.
    """
    batch, heads, q_len, head_dim = query.shape
    pages, kv_heads, page_size, value_dim = value_cache.shape
    output = empty_in_order_of(query, value_dim)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    if lse.numel() == 0:
        return output, lse
    caches = _cache(key_cache, key_scales), _cache(value_cache, value_scales)
    table = (None, 0, 0) if block_table is None else (block_table, *block_table.stride())
    capacity = page_size if block_table is None else block_table.shape[1] * page_size
    places = Places(cache_lengths, cache_lengths.stride(0), *table, pages, page_size, capacity)
    if new_key is not None:
        for new, cache in zip((new_key, new_value), caches, strict=True):
            features = new.shape[3]
            block = triton.next_power_of_2(features)
            run(_append_kernel, (batch * q_len, kv_heads), view(new), cache, places, q_len, features, block)

    sizes = Sizes(batch, heads, heads // kv_heads, q_len, capacity, head_dim, value_dim)
    compute = query.dtype if key_cache.dtype == torch.int8 else torch.promote_types(query.dtype, key_cache.dtype)
    reach = capacity if window_left < 0 else min(capacity, window_left + q_len + _KEYS)
    launch = _launch(query, compute, sizes, kv_heads, reach, paged=block_table is not None)
    target, target_lse = output, lse
    if launch.splits > 1:
        target = output.new_empty(launch.splits * batch, heads, q_len, value_dim, dtype=torch.float32)
        target_lse = lse.new_empty(launch.splits * batch, heads, q_len)
    scale = head_dim**-0.5 if scale is None else scale
    run(
        _attention_decode_kernel,
        (launch.programs, batch, launch.splits),
        view(query),
        *caches,
        places,
        view(target),
        View(target_lse, *target_lse.stride(), 1),
        vector(sinks),
        sizes,
        0 if new_key is None else q_len,
        max(window_left, 0),
        scale / softcap if softcap > 0 else scale * LOG2E.value,
        softcap * LOG2E.value,
        launch.splits,
        COMPUTE=_TYPES[compute],
        WINDOW=window_left >= 0,
        SOFTCAP=softcap > 0,
        SINKS=sinks is not None,
        SPLIT=launch.splits > 1,
        **launch.constants,
    )
    if launch.splits > 1:
        block_v = launch.constants["BLOCK_V"]
        block = max(1, 2048 // block_v)
        parts = (target, target_lse, view(output), lse, vector(sinks), sizes, launch.splits)
        run(_merge_kernel, (triton.cdiv(lse.numel(), block),), *parts, block, block_v, sinks is not None)
    return output, lse


class _Launch(NamedTuple):
    """programs: of one sequence and one part of its keys, of which there are `splits`; constants: by parameter."""

    programs: int
    splits: int
    constants: dict[str, Any]


def _launch(query: Tensor, compute: torch.dtype, sizes: Sizes, kv_heads: int, reach: int, paged: bool) -> _Launch:
    """compute: the dtype that is multiplied; reach: at most how many keys a sequence's queries see."""
    rows = sizes.q_len * sizes.group
    block_m = min(max(triton.next_power_of_2(rows), _FEWEST_ROWS), _MOST_ROWS)
    block_d, block_v = padded(sizes.head_dim), padded(sizes.value_dim)
    device, features = device_of(query), max(block_d, block_v)
    multiplied = precision(compute, query.device, features)
    on_tensor_cores = device.capability >= 80 and (compute != torch.float32 or multiplied == "tf32")
    loads_ahead = on_tensor_cores and features <= 128
    programs = triton.cdiv(rows, block_m) * kv_heads
    constants = {
        "PRECISION": multiplied,
        "BLOCK_M": block_m,
        "BLOCK_N": _KEYS if on_tensor_cores else _KEYS_WITHOUT_TENSOR_CORES,
        "BLOCK_D": block_d,
        "BLOCK_V": block_v,
        "num_warps": 4 if loads_ahead else 8,
        "num_stages": 2 if loads_ahead else 1,
        # Left alone, the compiler takes 128 there at 64 features, of 129 that it needs, and spills.
        "max_registers": 255 if family(device.capability) == "sm_120" and paged and features <= 128 else None,
    }
    # Fewer keys than _KEYS are little to split, whatever the tile.
    return _Launch(programs, key_splits(programs * sizes.batch, triton.cdiv(reach, _KEYS), device), constants)


def _cache(x: Tensor, scales: Tensor | None) -> Cache:
    return Cache(x, *x.stride()[:3], *((None, 0, 0, 0) if scales is None else (scales, *scales.stride())))
