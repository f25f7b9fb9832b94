"""Attention's forward pass (Dao, "FlashAttention-2: faster attention with better parallelism and work partitioning",
2023): a program takes a tile of queries through its keys, tile by tile, and holds the softmax of its rows open.

Where the queries alone would not fill the device, the keys are split among programs and `_merge_kernel` joins their
results (Dao, Haziza, Massa and Sizov, "Flash-Decoding for long-context inference", 2023). Where queries are few, the
heads of a group become rows of one tile, so that keys and values are read once for all of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_inputs import Features, Inputs, View, empty_in_order_of, padded, prepare, view
from .attention_launch import (
    Call,
    Device,
    arithmetic_of,
    attention_launch,
    device_of,
    heads_per_section,
    key_splits,
    max_registers,
)
from .dropout import dropout_tile, load_seed
from .online_softmax import add_sink, finish_softmax, start_softmax, update_softmax
from .packed_sequences import flat, from_row, most_tiles, of_sequence, ordered, row_batches, take_tile
from .scores import LOG2E, key_ranges, load_slopes, mask_offset, score_unit, tile_scores
from .tiles import index, load_tile, narrow, product, store_tile, take


@triton.jit
def _attend(
    accumulator,
    maximum,
    total,
    q,
    first,
    end,
    keys,
    values,
    inputs,
    batch,
    head,
    query,
    slope,
    mask_rows,
    seed_lo,
    seed_hi,
    FEATURES: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Takes the queries q through the keys [first, end). keys, values: pointers to the head's. MASKED: some keys may be
    beyond the last or outside the band."""
    sizes = inputs.sizes
    columns = tl.arange(0, BLOCK_N)
    n = index(columns, FEATURES.wide)
    d = index(tl.arange(0, BLOCK_D), FEATURES.wide)
    v = index(tl.arange(0, BLOCK_V), FEATURES.wide)
    key_tile = d[:, None] * inputs.key.column + n[None, :] * inputs.key.row
    value_tile = n[:, None] * inputs.value.row + v[None, :] * inputs.value.column
    unit = score_unit(inputs, FEATURES)
    for start in tl.range(first, end, BLOCK_N):
        left = sizes.kv_len - start
        at = tl.cast(start, tl.int64)
        pointers = keys + at * inputs.key.row + key_tile
        k = load_tile(pointers, d[:, None], sizes.head_dim, n[None, :], left, not FEATURES.head_exact, MASKED)
        scores, _ = tile_scores(
            product(q, k, None, FEATURES.precision),
            query,
            (start + columns)[None, :],
            slope,
            mask_rows,
            inputs,
            FEATURES,
            MASKED,
            MASKED,
        )
        weights, maximum, total, rescale = update_softmax(scores, unit, maximum, total)
        if tl.min(rescale, 0) < 1.0:
            accumulator = accumulator * rescale[:, None]
        if FEATURES.dropout:
            dropout = inputs.dropout
            weights *= dropout_tile(
                seed_lo, seed_hi, batch, head, query, start, dropout.threshold, dropout.scale, BLOCK_N, False
            )
        pointers = values + at * inputs.value.row + value_tile
        x = load_tile(pointers, n[:, None], left, v[None, :], sizes.value_dim, MASKED, not FEATURES.value_exact)
        accumulator = product(narrow(weights, x.dtype), x, accumulator, FEATURES.precision)
    return accumulator, maximum, total


@triton.jit
def _split_range(first, end, split, splits, BLOCK_N: tl.constexpr):
    """The part [first, end) of a range that one of its splits takes; splits begin at multiples of BLOCK_N."""
    part = tl.cdiv(tl.cdiv(end - first, BLOCK_N), splits) * BLOCK_N
    first = tl.minimum(first + split * part, end)
    return first, tl.minimum(first + part, end)


@triton.jit
def _queries_of_rows(first_row, row_count, q_len, FEATURES: tl.constexpr, BLOCK_M: tl.constexpr):
    """(first, last): between them lie the queries of a tile of folded rows. Packed sequences may be longer than a tile,
    which then belongs to one head."""
    first_query = first_row * 0
    last_query = first_query + q_len - 1
    if FEATURES.packed:
        last_row = tl.minimum(first_row + BLOCK_M, row_count) - 1
        one_head = first_row // q_len == last_row // q_len
        first_query = tl.where(one_head, first_row % q_len, first_query)
        last_query = tl.where(one_head, last_row % q_len, last_query)
    return first_query, last_query


@triton.jit
def _attention_forward_kernel(
    inputs,
    output,
    lse,
    section,
    splits,
    FEATURES: tl.constexpr,
    FOLDED: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One tile of rows. FOLDED: rows are the queries of all heads of a group; else those of one head. SPLIT: the result
    is that of a part of the keys, in fp32 and without sinks, for _merge_kernel; parts follow each other along the
    batch dimension of output and lse."""
    group = inputs.sizes.group if FOLDED else 1
    heads = inputs.sizes.heads // group
    if FEATURES.packed:
        batch, tile, head = take_tile(inputs.packed, heads, section)
        if batch < 0:
            return
        own = of_sequence(inputs, batch)
        inputs = Inputs(
            own.query,
            own.key,
            own.value,
            inputs.mask,
            inputs.slopes,
            inputs.sinks,
            own.sizes,
            own.band,
            inputs.rules,
            inputs.dropout,
            own.packed,
        )
    sizes = inputs.sizes
    row_count = sizes.q_len * group
    tiles = tl.cdiv(row_count, BLOCK_M)
    if not FEATURES.packed:
        tile, head = take(tl.program_id(0), tiles, sizes.batch * heads, section)
        batch = head // heads
        head = head % heads
    if FEATURES.after:
        tile = tiles - 1 - tile  # later queries see more keys: the longest work first

    # Rows beyond the last repeat it, and are not stored.
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    query = tl.minimum(rows, row_count - 1)
    first_query = tile * BLOCK_M
    last_query = tl.minimum(first_query + BLOCK_M, row_count) - 1
    kv_head = head // sizes.group
    if FOLDED:
        kv_head = head
        head = kv_head * group + query // sizes.q_len
        query = query % sizes.q_len
        first_query, last_query = _queries_of_rows(tile * BLOCK_M, row_count, sizes.q_len, FEATURES, BLOCK_M)

    batch = tl.cast(batch, tl.int64)
    wide_head = tl.cast(head, tl.int64)
    d = index(tl.arange(0, BLOCK_D)[None, :], FEATURES.wide)
    q_rows = batch * inputs.query.batch + wide_head * inputs.query.head + query.to(tl.int64) * inputs.query.row
    pointers = inputs.query.data + q_rows + d * inputs.query.column
    q = load_tile(pointers, rows, row_count, d, sizes.head_dim, False, not FEATURES.head_exact)
    keys = inputs.key.data + batch * inputs.key.batch + tl.cast(kv_head, tl.int64) * inputs.key.head
    values = inputs.value.data + batch * inputs.value.batch + tl.cast(kv_head, tl.int64) * inputs.value.head
    slope = load_slopes(inputs, batch, head, FEATURES)
    mask_rows = mask_offset(inputs, batch, head, query, FEATURES)
    seed_lo = 0
    seed_hi = 0
    if FEATURES.dropout:
        seed_lo, seed_hi = load_seed(inputs.dropout.seed)

    first, full_first, full_end, end = key_ranges(first_query, last_query, inputs, FEATURES, BLOCK_N)
    if SPLIT:
        first, end = _split_range(first, end, tl.program_id(1), splits, BLOCK_N)
        full_first = tl.minimum(tl.maximum(full_first, first), end)
        full_end = tl.maximum(tl.minimum(full_end, end), full_first)
    accumulator = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    maximum, total = start_softmax(BLOCK_M)
    # The boundary tiles before the full ones exist where a window has a left side.
    for phase in tl.static_range(0 if FEATURES.before else 1, 3):
        phase_first = first if phase == 0 else (full_first if phase == 1 else full_end)
        phase_end = full_first if phase == 0 else (full_end if phase == 1 else end)
        if SPLIT and FEATURES.mask != "none":
            # Else the mask would be read one element at a time, and the softmax be computed in the layout of these
            # reads too. It is not so where there is no tile left.
            phase_first = tl.multiple_of(phase_first, BLOCK_N)
        accumulator, maximum, total = _attend(
            accumulator,
            maximum,
            total,
            q,
            phase_first,
            phase_end,
            keys,
            values,
            inputs,
            batch,
            head,
            query,
            slope,
            mask_rows,
            seed_lo,
            seed_hi,
            FEATURES,
            phase != 1,
            BLOCK_N,
            BLOCK_D,
            BLOCK_V,
        )

    if FEATURES.sinks and not SPLIT:
        sinks = inputs.sinks.data + wide_head * inputs.sinks.stride
        sink = tl.reshape(tl.load(sinks + query * 0), (BLOCK_M,))
        maximum, total, rescale = add_sink(maximum, total, sink)
        accumulator *= rescale[:, None]
    factor, row_lse = finish_softmax(maximum, total)
    if FEATURES.packed:
        output = from_row(output, inputs.packed.query)
        lse = from_row(lse, inputs.packed.query)
        batch = tl.program_id(1).to(tl.int64)
    elif SPLIT:
        batch += tl.program_id(1) * sizes.batch
    v = tl.arange(0, BLOCK_V)[None, :]
    out_rows = batch * output.batch + wide_head * output.head + query.to(tl.int64) * output.row
    store_tile(output.data + out_rows + v, accumulator * factor[:, None], rows, row_count, v, sizes.value_dim)
    lse_rows = batch * lse.batch + wide_head * lse.head + query
    tl.store(lse.data + lse_rows, row_lse[:, None], mask=rows < row_count)


@triton.jit
def _merge_kernel(
    partial,
    partial_lse,
    output,
    lse,
    sinks,
    sizes,
    splits,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Joins the results of the splits of BLOCK_M rows of [batch, heads, q_len], and the sinks."""
    row_count = tl.cast(sizes.batch, tl.int64) * sizes.heads * sizes.q_len
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.minimum(rows, row_count - 1)
    query = row % sizes.q_len
    head = row // sizes.q_len % sizes.heads
    batch = row // sizes.q_len // sizes.heads
    v = tl.arange(0, BLOCK_V)[None, :]
    exact = v < sizes.value_dim
    maximum, total = start_softmax(BLOCK_M)
    accumulator = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    for split in tl.range(0, splits):
        at = row + split * row_count
        # A split's result stands for one key: its lse is that key's score, and its output that key's value.
        logit = tl.load(partial_lse + at) * LOG2E
        weight, maximum, total, rescale = update_softmax(logit[:, None], 1.0, maximum, total)
        x = tl.load(partial + at[:, None] * sizes.value_dim + v, mask=exact, other=0.0)
        accumulator = accumulator * rescale[:, None] + weight * x
    if SINKS:
        maximum, total, rescale = add_sink(maximum, total, tl.load(sinks.data + head * sinks.stride))
        accumulator *= rescale[:, None]
    factor, row_lse = finish_softmax(maximum, total)
    pointers = output.data + (batch * output.batch + head * output.head + query * output.row)[:, None] + v
    store_tile(pointers, accumulator * factor[:, None], rows[:, None], row_count, v, sizes.value_dim)
    tl.store(lse + row, row_lse, mask=rows < row_count)


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
) -> tuple[Tensor, Tensor]:
    """softmax(scores) value and the log of the softmax's denominator; bigmodel_kernels.attention has the full story.

    Shapes: query [batch, heads, q_len, head_dim]; key [batch, kv_heads, kv_len, head_dim]; value [batch, kv_heads,
    kv_len, value_dim]; mask [batch or 1, heads or 1, q_len or 1, kv_len or 1], boolean, fp32 or of query's dtype;
    alibi_slopes [heads] or [batch or 1, heads] and sinks [heads], fp32; dropout_seed int64, of one element. Returns
    output [batch, heads, q_len, value_dim] in query's dtype and lse [batch, heads, q_len] in fp32.
    Raises: ValueError for shapes, dtypes or options that do not fit together.
    """
    inputs, features = prepare(
        "attention",
        query,
        key,
        value,
        mask,
        alibi_slopes,
        sinks,
        dropout_seed,
        causal=causal,
        scale=scale,
        window_left=window_left,
        window_right=window_right,
        softcap=softcap,
        dropout_p=dropout_p,
    )
    output = empty_in_order_of(query, value.shape[3])
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    if lse.numel() and key.shape[2]:
        for call in forward_calls(inputs, features, output, lse, query.dtype, device_of(query)):
            call.run()
    elif lse.numel():
        without_keys(output, lse, sinks)
    return output, lse


def without_keys(output: Tensor, lse: Tensor, sinks: Tensor | None) -> None:
    """Fills both with the results of queries where there is no key at all. lse: [..., heads, queries]."""
    output.zero_()
    lse.copy_(lse.new_full((), -torch.inf) if sinks is None else sinks[:, None])


def forward_calls(
    inputs: Inputs, features: Features, output: Tensor, lse: Tensor, dtype: torch.dtype, device: Device
) -> list[Call]:
    """The launches that compute output and lse; there is at least one query and one key. Of packed sequences both come
    as Packed says of tensors, and the lse as it is in memory is [heads, queries]."""
    sizes = inputs.sizes
    block_d, block_v = padded(sizes.head_dim), padded(sizes.value_dim)
    arithmetic = arithmetic_of(dtype, features.precision)
    of_kernel = ("forward", device, max(block_d, block_v), arithmetic, inputs.mask.data, features.dropout)
    launch = attention_launch(*of_kernel)
    batches = row_batches(sizes, features)
    # Few queries of grouped heads: the group becomes rows, where tiles would be mostly empty otherwise.
    folded = sizes.group > 1 and 2 * sizes.q_len * batches <= launch.block_m * sizes.batch
    masked = features.mask != "none"
    crowded = folded and (features.packed or masked or features.dropout)
    if crowded or (features.packed and masked and features.dropout):
        launch = attention_launch(*of_kernel, crowded=True)
    group = sizes.group if folded else 1
    heads = batches * sizes.heads // group
    programs = most_tiles(sizes, features, sizes.q_len * group, launch.block_m) * (sizes.heads // group)
    splits = key_splits(programs, triton.cdiv(_keys_seen(inputs, features, launch.block_m), launch.block_n), device)
    kv_bytes = sizes.kv_len * (sizes.head_dim + sizes.value_dim) * dtype.itemsize
    section = heads_per_section(heads, kv_bytes, sizes.group // group, device)
    target, target_lse = output, lse
    if splits > 1:
        target = output.new_empty(splits * batches, *output.shape[1:], dtype=torch.float32)
        target_lse = lse.new_empty(splits * batches, *lse.shape[1:])
    inputs, calls = ordered(inputs, features, launch.block_m, group)
    lse_view = View(target_lse, *target_lse.stride(), 1)
    blocks = (launch.block_m, launch.block_n, block_d, block_v)
    arguments = (inputs, view(target), lse_view, section, splits, features, folded, splits > 1, *blocks)
    grid = (programs, splits)
    registers = max_registers("forward", device, max(block_d, block_v), arithmetic)
    how = (launch.num_warps, launch.num_stages, registers)
    calls.append(Call("forward", _attention_forward_kernel, grid, arguments, *how))
    if splits > 1:
        block, rows = max(1, 2048 // block_v), flat(sizes, features)
        arguments = (target, target_lse, view(output), lse, inputs.sinks, rows, splits, block, block_v, features.sinks)
        calls.append(
            Call("merge", _merge_kernel, (triton.cdiv(batches * sizes.heads * sizes.q_len, block),), arguments)
        )
    return calls


def _keys_seen(inputs: Inputs, features: Features, block_m: int) -> int:
    """At most how many keys a tile of queries sees."""
    if features.before and features.after:
        return min(inputs.sizes.kv_len, inputs.band.before + inputs.band.after + block_m)
    return inputs.sizes.kv_len
