"""The gradients of attention and of attention_weights: one algorithm, since both differentiate
weights = exp(scores - lse) and differ only in where dL/dweights comes from.

Each gradient has a pass of its own that recomputes the weights it needs (Dao, "FlashAttention-2", 2023), so nothing is
added up by atomics and the same inputs give the same bits. With P the weights, Z dropout's factors:
    dL/dvalue = (P Z)^T grad_output;  dP = Z (grad_output value^T);  dscores = P (dP - delta);
    delta = sum_j P dP - grad_lse = output . grad_output - grad_lse.
Of attention_weights, grad_output value^T is given, the lse is an input like any other, and delta is 0.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .attention_inputs import Inputs, View
from .dropout import dropout_tile, load_seed
from .packed_sequences import from_row, of_sequence, take_tile
from .scores import (
    LOG2E,
    feature_products,
    key_ranges,
    load_slopes,
    mask_offset,
    query_ranges,
    score_unit,
    tile_scores,
)
from .tiles import Rows, index, load_tile, narrow, product, store_tile, take


class Terms(NamedTuple):
    """lse (in units of log2, inf for a row that saw no key) and delta: of row_terms_kernel, [batch, heads, q_len].
    weights_scale: what the gradient of the weights is to be multiplied by."""

    lse: Any
    delta: Any
    weights_scale: float = 1.0


class Incoming(NamedTuple):
    """What the gradients start from. output: the gradient of the output; weights: that of the weights. Which of the two
    there is, is a constant of the kernels: SOURCE "output", "weights" or, where only the lse was differentiated,
    "lse"."""

    terms: Terms
    output: View
    weights: View


@triton.jit
def row_terms_kernel(
    output, grad_output, lse, grad_lse, row_lse, row_delta, sizes, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr
):
    """The lse and delta of Terms for BLOCK_M rows of [batch, heads, q_len]. lse and grad_lse are Views whose row is a
    query; what has no data counts as 0."""
    row_count = tl.cast(sizes.batch, tl.int64) * sizes.heads * sizes.q_len
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.minimum(rows, row_count - 1)
    query = row % sizes.q_len
    head = row // sizes.q_len % sizes.heads
    batch = row // sizes.q_len // sizes.heads
    x = tl.load(lse.data + batch * lse.batch + head * lse.head + query * lse.row)
    tl.store(row_lse + row, tl.where(x == float("-inf"), float("inf"), x * LOG2E), mask=rows < row_count)
    delta = tl.zeros((BLOCK_M,), tl.float32)
    if grad_output.data is not None:
        v = tl.arange(0, BLOCK_V)[None, :].to(tl.int64)
        exact = v < sizes.value_dim
        at = (batch * output.batch + head * output.head + query * output.row)[:, None] + v * output.column
        y = tl.load(output.data + at, mask=exact, other=0.0).to(tl.float32)
        at = (batch * grad_output.batch + head * grad_output.head + query * grad_output.row)[:, None]
        grad = tl.load(grad_output.data + at + v * grad_output.column, mask=exact, other=0.0).to(tl.float32)
        delta += tl.sum(y * grad, 1)
    if grad_lse.data is not None:
        delta -= tl.load(grad_lse.data + batch * grad_lse.batch + head * grad_lse.head + query * grad_lse.row)
    tl.store(row_delta + row, delta, mask=rows < row_count)


@triton.jit
def grad_sinks_kernel(sinks, row_lse, row_delta, grad_sinks, sizes, BLOCK_M: tl.constexpr):
    """A sink's weight is exp(sink - lse), and no value hangs on it. One program per head adds up its rows in order."""
    head = tl.program_id(0)
    logit = tl.load(sinks.data + head.to(tl.int64) * sinks.stride) * LOG2E
    total = tl.zeros((BLOCK_M,), tl.float32)
    for batch in tl.range(0, sizes.batch):
        first = (tl.cast(batch, tl.int64) * sizes.heads + head) * sizes.q_len
        for start in tl.range(0, sizes.q_len, BLOCK_M):
            query = start + tl.arange(0, BLOCK_M)
            inside = query < sizes.q_len
            lse = tl.load(row_lse + first + query, mask=inside, other=float("inf"))
            delta = tl.load(row_delta + first + query, mask=inside, other=0.0)
            total -= tl.exp2(logit - lse) * delta
    tl.store(grad_sinks + head, tl.sum(total, 0))


@triton.jit
def first_term(inputs, batch, head, FEATURES: tl.constexpr):
    """Where in Terms the first query of a head is, in 64 bits."""
    if FEATURES.packed:
        at = tl.cast(head, tl.int64) * inputs.packed.queries + inputs.packed.query
    else:
        at = (batch * inputs.sizes.heads + head) * inputs.sizes.q_len
    return at


@triton.jit
def tile_gradients(
    products,
    grad_weights,
    query,
    key,
    lse,
    delta,
    inputs,
    batch,
    head,
    slope,
    mask_rows,
    first_key,
    FEATURES: tl.constexpr,
    BOUNDED: tl.constexpr,
    BANDED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """(weights after dropout, gradient of the scores, gradient of the products but for the scale) of a tile.

    lse and delta broadcast along the keys; grad_weights is before dropout; first_key: of the tile's BLOCK_N.
    """
    scores, capped = tile_scores(products, query, key, slope, mask_rows, inputs, FEATURES, BOUNDED, BANDED)
    weights = tl.exp2(scores * score_unit(inputs, FEATURES) - lse)
    dropped = weights
    if FEATURES.dropout:
        dropout = inputs.dropout
        seed_lo, seed_hi = load_seed(dropout.seed)
        factor = dropout_tile(
            seed_lo, seed_hi, batch, head, query, first_key, dropout.threshold, dropout.scale, BLOCK_N, TRANSPOSED
        )
        dropped = weights * factor
        grad_weights = grad_weights * factor
    grad_scores = weights * (grad_weights - delta)
    grad_products = grad_scores
    if FEATURES.softcap:
        grad_products = grad_scores * (1.0 - capped * capped)
    return dropped, grad_scores, grad_products


@triton.jit
def load_grad_weights(incoming, batch, head, query, key, sizes):
    """The tile of dL/dweights that was given, in fp32; 0 beyond the last query or key."""
    given = incoming.weights
    pointers = given.data + batch * given.batch + tl.cast(head, tl.int64) * given.head
    pointers += query.to(tl.int64) * given.row + key.to(tl.int64) * given.column
    inside = (query < sizes.q_len) & (key < sizes.kv_len)
    return tl.load(pointers, mask=inside, other=0.0).to(tl.float32) * incoming.terms.weights_scale


@triton.jit
def _through_queries(
    grad_key,
    grad_value,
    k,
    v,
    key_rows,
    value_rows,
    first,
    end,
    key,
    first_key,
    inputs,
    incoming,
    batch,
    head,
    FEATURES: tl.constexpr,
    SOURCE: tl.constexpr,
    WANT_KEY: tl.constexpr,
    WANT_VALUE: tl.constexpr,
    BANDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Adds what the queries [first, end) of one head contribute to the gradients of a tile of keys and values. Tiles
    are [keys, queries] here, so that they are left factors as they come."""
    sizes = inputs.sizes
    rows = tl.arange(0, BLOCK_M)
    d = index(tl.arange(0, BLOCK_D)[None, :], FEATURES.wide)
    e = index(tl.arange(0, BLOCK_V)[None, :], FEATURES.wide)
    wide_head = tl.cast(head, tl.int64)
    queries = inputs.query.data + batch * inputs.query.batch + wide_head * inputs.query.head
    terms = first_term(inputs, batch, head, FEATURES)
    slope = load_slopes(inputs, batch, head, FEATURES)
    for start in tl.range(first, end, BLOCK_M, disable_licm=FEATURES.crowded):
        # Queries beyond the last repeat it; an infinite lse makes their weights 0.
        at = tl.cast(start, tl.int64)
        row = index(tl.minimum(rows, sizes.q_len - 1 - start)[:, None], FEATURES.wide)
        query_rows = Rows(queries + at * inputs.query.row + row * inputs.query.row, inputs.query.column)
        pointers = query_rows.first + d * inputs.query.column
        q = load_tile(pointers, row, 0, d, sizes.head_dim, False, not FEATURES.head_exact)
        query = start + rows
        lse = tl.load(incoming.terms.lse + terms + query, mask=query < sizes.q_len, other=float("inf"))[None, :]
        delta = tl.load(incoming.terms.delta + terms + query, mask=query < sizes.q_len, other=0.0)[None, :]
        query = query[None, :]
        products = feature_products(k, q, key_rows, query_rows, sizes.head_dim, FEATURES.head_exact, BLOCK_D, FEATURES)
        grad_weights = tl.zeros_like(products)
        if SOURCE == "output":
            given = incoming.output
            outputs = given.data + batch * given.batch + wide_head * given.head + at * given.row
            output_rows = Rows(outputs + row * given.row, given.column)
            pointers = output_rows.first + e * given.column
            grad_output = load_tile(pointers, row, 0, e, sizes.value_dim, False, not FEATURES.value_exact)
            grad_weights = feature_products(
                v, grad_output, value_rows, output_rows, sizes.value_dim, FEATURES.value_exact, BLOCK_V, FEATURES
            )
        if SOURCE == "weights":
            grad_weights = load_grad_weights(incoming, batch, head, query, key, sizes)
        mask_rows = mask_offset(inputs, batch, head, query, FEATURES)
        dropped, _, grad_products = tile_gradients(
            products,
            grad_weights,
            query,
            key,
            lse,
            delta,
            inputs,
            batch,
            head,
            slope,
            mask_rows,
            first_key,
            FEATURES,
            FEATURES.mask != "none",
            BANDED,
            True,
            BLOCK_N,
        )
        if WANT_VALUE:
            grad_value = product(narrow(dropped, q.dtype), grad_output, grad_value, FEATURES.precision)
        if WANT_KEY:
            grad_key = product(narrow(grad_products, q.dtype), q, grad_key, FEATURES.precision)
    return grad_key, grad_value


@triton.jit
def grad_key_value_kernel(
    inputs,
    incoming,
    grad_key,
    grad_value,
    section,
    FEATURES: tl.constexpr,
    SOURCE: tl.constexpr,
    WANT_KEY: tl.constexpr,
    WANT_VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """The gradients of one tile of keys and values of one key head, from all queries of its group that see it."""
    kv_heads = inputs.sizes.heads // inputs.sizes.group
    # The first keys are seen by most queries of a causal call, so this order has the longest work first.
    if FEATURES.packed:
        batch, tile, kv_head = take_tile(inputs.packed, kv_heads, section)
        if batch < 0:
            return
        batch = tl.cast(batch, tl.int64)
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
        if SOURCE == "output":
            incoming = Incoming(incoming.terms, from_row(incoming.output, inputs.packed.query), incoming.weights)
    sizes = inputs.sizes
    if not FEATURES.packed:
        tile, head = take(tl.program_id(0), tl.cdiv(sizes.kv_len, BLOCK_N), sizes.batch * kv_heads, section)
        batch = tl.cast(head // kv_heads, tl.int64)
        kv_head = head % kv_heads
    wide_head = tl.cast(kv_head, tl.int64)
    first_key = tile * BLOCK_N
    last_key = tl.minimum(first_key + BLOCK_N, sizes.kv_len) - 1
    key = first_key + tl.arange(0, BLOCK_N)[:, None]
    d = index(tl.arange(0, BLOCK_D)[None, :], FEATURES.wide)
    e = index(tl.arange(0, BLOCK_V)[None, :], FEATURES.wide)

    at = key.to(tl.int64)
    last = sizes.kv_len - 1  # Rows beyond it repeat it, and their gradients are not stored.
    keys = inputs.key.data + batch * inputs.key.batch + wide_head * inputs.key.head
    key_rows = Rows(keys + tl.minimum(at, last) * inputs.key.row, inputs.key.column)
    pointers = keys + at * inputs.key.row + d * inputs.key.column
    k = load_tile(pointers, key, sizes.kv_len, d, sizes.head_dim, True, not FEATURES.head_exact)
    v = k
    value_rows = key_rows
    if SOURCE == "output":
        values = inputs.value.data + batch * inputs.value.batch + wide_head * inputs.value.head
        value_rows = Rows(values + tl.minimum(at, last) * inputs.value.row, inputs.value.column)
        pointers = values + at * inputs.value.row + e * inputs.value.column
        v = load_tile(pointers, key, sizes.kv_len, e, sizes.value_dim, True, not FEATURES.value_exact)

    sum_key = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    sum_value = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    first, full_first, full_end, end = query_ranges(first_key, last_key, inputs, FEATURES, BLOCK_M)
    # Queries before the full tiles are cut off by the band's later side, those after them by its earlier one. One loop
    # over the group's heads for each, and not all of these in one, of which the state of every loop would be in
    # registers at once; where these are few, nothing is kept there that can be computed again.
    for phase in tl.static_range(0 if FEATURES.after else 1, 3 if FEATURES.before else 2):
        for member in tl.range(0, sizes.group, disable_licm=FEATURES.crowded):
            sum_key, sum_value = _through_queries(
                sum_key,
                sum_value,
                k,
                v,
                key_rows,
                value_rows,
                first if phase == 0 else (full_first if phase == 1 else full_end),
                full_first if phase == 0 else (full_end if phase == 1 else end),
                key,
                first_key,
                inputs,
                incoming,
                batch,
                kv_head * sizes.group + member,
                FEATURES,
                SOURCE,
                WANT_KEY,
                WANT_VALUE,
                phase != 1,
                BLOCK_M,
                BLOCK_N,
                BLOCK_D,
                BLOCK_V,
            )
    if FEATURES.packed:
        at += inputs.packed.key
    if WANT_KEY:
        pointers = grad_key.data + batch * grad_key.batch + wide_head * grad_key.head + at * grad_key.row + d
        store_tile(pointers, sum_key * inputs.rules.gradient_scale, key, sizes.kv_len, d, sizes.head_dim)
    if WANT_VALUE:
        pointers = grad_value.data + batch * grad_value.batch + wide_head * grad_value.head + at * grad_value.row + e
        store_tile(pointers, sum_value, key, sizes.kv_len, e, sizes.value_dim)


@triton.jit
def _through_keys(
    grad_query,
    row_sum,
    q,
    grad_output,
    query_rows,
    output_rows,
    lse,
    delta,
    first,
    end,
    inputs,
    incoming,
    batch,
    head,
    query,
    slope,
    mask_rows,
    FEATURES: tl.constexpr,
    SOURCE: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Adds what the keys [first, end) contribute to the gradient of a tile of queries, and to the sums of the rows of
    the scores' gradient."""
    sizes = inputs.sizes
    columns = tl.arange(0, BLOCK_N)[:, None]
    n = index(columns, FEATURES.wide)
    d = index(tl.arange(0, BLOCK_D)[None, :], FEATURES.wide)
    e = index(tl.arange(0, BLOCK_V)[None, :], FEATURES.wide)
    kv_head = tl.cast(head // sizes.group, tl.int64)
    keys = inputs.key.data + batch * inputs.key.batch + kv_head * inputs.key.head
    for start in tl.range(first, end, BLOCK_N):
        left = sizes.kv_len - start
        at = tl.cast(start, tl.int64)
        row = tl.minimum(n, left - 1)  # keys beyond the last repeat it in Rows, and are removed
        key_rows = Rows(keys + at * inputs.key.row + row * inputs.key.row, inputs.key.column)
        pointers = keys + at * inputs.key.row + n * inputs.key.row + d * inputs.key.column
        k = load_tile(pointers, columns, left, d, sizes.head_dim, MASKED, not FEATURES.head_exact)
        key = start + tl.arange(0, BLOCK_N)[None, :]
        products = feature_products(q, k, query_rows, key_rows, sizes.head_dim, FEATURES.head_exact, BLOCK_D, FEATURES)
        grad_weights = tl.zeros_like(products)
        if SOURCE == "output":
            values = inputs.value.data + batch * inputs.value.batch + kv_head * inputs.value.head
            value_rows = Rows(values + at * inputs.value.row + row * inputs.value.row, inputs.value.column)
            pointers = values + at * inputs.value.row + n * inputs.value.row + e * inputs.value.column
            v = load_tile(pointers, columns, left, e, sizes.value_dim, MASKED, not FEATURES.value_exact)
            grad_weights = feature_products(
                grad_output, v, output_rows, value_rows, sizes.value_dim, FEATURES.value_exact, BLOCK_V, FEATURES
            )
        if SOURCE == "weights":
            grad_weights = load_grad_weights(incoming, batch, head, query, key, sizes)
        _, grad_scores, grad_products = tile_gradients(
            products,
            grad_weights,
            query,
            key,
            lse,
            delta,
            inputs,
            batch,
            head,
            slope,
            mask_rows,
            start,
            FEATURES,
            MASKED,
            MASKED,
            False,
            BLOCK_N,
        )
        if SOURCE == "weights":
            row_sum += tl.sum(grad_scores, 1)
        grad_query = product(narrow(grad_products, k.dtype), k, grad_query, FEATURES.precision)
    return grad_query, row_sum


@triton.jit
def grad_query_kernel(
    inputs,
    incoming,
    grad_query,
    grad_input_lse,
    section,
    FEATURES: tl.constexpr,
    SOURCE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """The gradient of one tile of queries of one head; of attention_weights, that of the lse too. Either may be absent:
    a View without data, or None."""
    if FEATURES.packed:
        batch, tile, head = take_tile(inputs.packed, inputs.sizes.heads, section)
        if batch < 0:
            return
        batch = tl.cast(batch, tl.int64)
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
        if SOURCE == "output":
            incoming = Incoming(incoming.terms, from_row(incoming.output, inputs.packed.query), incoming.weights)
    sizes = inputs.sizes
    tiles = tl.cdiv(sizes.q_len, BLOCK_M)
    if not FEATURES.packed:
        tile, head = take(tl.program_id(0), tiles, sizes.batch * sizes.heads, section)
        batch = tl.cast(head // sizes.heads, tl.int64)
        head = head % sizes.heads
    if FEATURES.after:
        tile = tiles - 1 - tile  # later queries see more keys: the longest work first
    wide_head = tl.cast(head, tl.int64)
    first_query = tile * BLOCK_M
    last_query = tl.minimum(first_query + BLOCK_M, sizes.q_len) - 1
    query = first_query + tl.arange(0, BLOCK_M)
    terms = first_term(inputs, batch, head, FEATURES) + query
    lse = tl.load(incoming.terms.lse + terms, mask=query < sizes.q_len, other=float("inf"))[:, None]
    delta = tl.load(incoming.terms.delta + terms, mask=query < sizes.q_len, other=0.0)[:, None]
    query = query[:, None]
    at = query.to(tl.int64)
    d = index(tl.arange(0, BLOCK_D)[None, :], FEATURES.wide)
    e = index(tl.arange(0, BLOCK_V)[None, :], FEATURES.wide)
    queries = inputs.query.data + batch * inputs.query.batch + wide_head * inputs.query.head
    last = sizes.q_len - 1  # Rows beyond it repeat it; an infinite lse makes their weights 0.
    query_rows = Rows(queries + tl.minimum(at, last) * inputs.query.row, inputs.query.column)
    pointers = queries + at * inputs.query.row + d * inputs.query.column
    q = load_tile(pointers, query, sizes.q_len, d, sizes.head_dim, True, not FEATURES.head_exact)
    grad_output = q
    output_rows = query_rows
    if SOURCE == "output":
        given = incoming.output
        outputs = given.data + batch * given.batch + wide_head * given.head
        output_rows = Rows(outputs + tl.minimum(at, last) * given.row, given.column)
        pointers = outputs + at * given.row + e * given.column
        grad_output = load_tile(pointers, query, sizes.q_len, e, sizes.value_dim, True, not FEATURES.value_exact)

    slope = load_slopes(inputs, batch, head, FEATURES)
    mask_rows = mask_offset(inputs, batch, head, query, FEATURES)
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    first, full_first, full_end, end = key_ranges(first_query, last_query, inputs, FEATURES, BLOCK_N)
    for phase in tl.static_range(0 if FEATURES.before else 1, 3):
        total, row_sum = _through_keys(
            total,
            row_sum,
            q,
            grad_output,
            query_rows,
            output_rows,
            lse,
            delta,
            first if phase == 0 else (full_first if phase == 1 else full_end),
            full_first if phase == 0 else (full_end if phase == 1 else end),
            inputs,
            incoming,
            batch,
            head,
            query,
            slope,
            mask_rows,
            FEATURES,
            SOURCE,
            phase != 1,
            BLOCK_N,
            BLOCK_D,
            BLOCK_V,
        )
    if FEATURES.packed:
        at += inputs.packed.query
    if grad_query.data is not None:
        pointers = grad_query.data + batch * grad_query.batch + wide_head * grad_query.head + at * grad_query.row + d
        store_tile(pointers, total * inputs.rules.gradient_scale, query, sizes.q_len, d, sizes.head_dim)
    if grad_input_lse is not None:
        tl.store(grad_input_lse + terms, -row_sum, mask=first_query + tl.arange(0, BLOCK_M) < sizes.q_len)
