"""The gradient of an additive mask: that of the scores, added up in a fixed order over the dimensions that the mask
does not have."""

import triton
import triton.language as tl

from .attention_gradient import Incoming, first_term, load_grad_weights, tile_gradients
from .attention_inputs import Inputs
from .packed_sequences import from_row, of_sequence
from .scores import feature_products, key_ranges, load_slopes, mask_offset
from .tiles import Rows, index, load_tile, store_tile


@triton.jit
def _score_gradients(
    inputs,
    incoming,
    batch,
    head,
    query,
    key,
    first_key,
    FEATURES: tl.constexpr,
    SOURCE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """The gradient of one tile of scores of one head; 0 beyond the last query or key. batch and head are 64 bits wide,
    query is [BLOCK_M, 1] and key [1, BLOCK_N]."""
    sizes = inputs.sizes
    kv_head = head // sizes.group
    d = index(tl.arange(0, BLOCK_D)[None, :], FEATURES.wide)
    e = index(tl.arange(0, BLOCK_V)[None, :], FEATURES.wide)
    row, column = query.to(tl.int64), tl.trans(key).to(tl.int64)
    queries = inputs.query.data + batch * inputs.query.batch + head * inputs.query.head
    query_rows = Rows(queries + tl.minimum(row, sizes.q_len - 1) * inputs.query.row, inputs.query.column)
    pointers = queries + row * inputs.query.row + d * inputs.query.column
    q = load_tile(pointers, query, sizes.q_len, d, sizes.head_dim, True, not FEATURES.head_exact)
    keys = inputs.key.data + batch * inputs.key.batch + kv_head * inputs.key.head
    key_rows = Rows(keys + tl.minimum(column, sizes.kv_len - 1) * inputs.key.row, inputs.key.column)
    pointers = keys + column * inputs.key.row + d * inputs.key.column
    k = load_tile(pointers, column, sizes.kv_len, d, sizes.head_dim, True, not FEATURES.head_exact)
    products = feature_products(q, k, query_rows, key_rows, sizes.head_dim, FEATURES.head_exact, BLOCK_D, FEATURES)
    grad_weights = tl.zeros_like(products)
    if SOURCE == "output":
        given = incoming.output
        outputs = given.data + batch * given.batch + head * given.head
        output_rows = Rows(outputs + tl.minimum(row, sizes.q_len - 1) * given.row, given.column)
        pointers = outputs + row * given.row + e * given.column
        x = load_tile(pointers, query, sizes.q_len, e, sizes.value_dim, True, not FEATURES.value_exact)
        values = inputs.value.data + batch * inputs.value.batch + kv_head * inputs.value.head
        value_rows = Rows(values + tl.minimum(column, sizes.kv_len - 1) * inputs.value.row, inputs.value.column)
        pointers = values + column * inputs.value.row + e * inputs.value.column
        v = load_tile(pointers, column, sizes.kv_len, e, sizes.value_dim, True, not FEATURES.value_exact)
        grad_weights = feature_products(
            x, v, output_rows, value_rows, sizes.value_dim, FEATURES.value_exact, BLOCK_V, FEATURES
        )
    if SOURCE == "weights":
        grad_weights = load_grad_weights(incoming, batch, head, query, key, sizes)
    terms = first_term(inputs, batch, head, FEATURES) + query
    lse = tl.load(incoming.terms.lse + terms, mask=query < sizes.q_len, other=float("inf"))
    delta = tl.load(incoming.terms.delta + terms, mask=query < sizes.q_len, other=0.0)
    _, grad_scores, _ = tile_gradients(
        products,
        grad_weights,
        query,
        key,
        lse,
        delta,
        inputs,
        batch,
        head,
        load_slopes(inputs, batch, head, FEATURES),
        mask_offset(inputs, batch, head, query, FEATURES),
        first_key,
        FEATURES,
        True,
        True,
        False,
        BLOCK_N,
    )
    return grad_scores


@triton.jit
def _add_sequence(
    total,
    inputs,
    incoming,
    sequence,
    mask_head,
    heads,
    first_query,
    first_key,
    FEATURES: tl.constexpr,
    SOURCE: tl.constexpr,
    ADD_QUERIES: tl.constexpr,
    ADD_KEYS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Adds what a sequence has of a tile of scores; with ADD_QUERIES or ADD_KEYS of all its tiles along that side, of
    which the host does not know the number."""
    own = of_sequence(inputs, sequence)
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
    query_end = sizes.q_len if ADD_QUERIES else tl.minimum(first_query + BLOCK_M, sizes.q_len)
    key_end = sizes.kv_len if ADD_KEYS else tl.minimum(first_key + BLOCK_N, sizes.kv_len)
    for row in tl.range(first_query, query_end, BLOCK_M):
        last_query = tl.minimum(row + BLOCK_M, sizes.q_len) - 1
        first, _, _, end = key_ranges(row, last_query, inputs, FEATURES, BLOCK_N)
        query = row + tl.arange(0, BLOCK_M)[:, None]
        for column in tl.range(tl.maximum(first, first_key), tl.minimum(end, key_end), BLOCK_N):
            for h in tl.range(0, heads):
                total += _score_gradients(
                    inputs,
                    incoming,
                    sequence,
                    tl.cast(h, tl.int64) + mask_head,
                    query,
                    column + tl.arange(0, BLOCK_N)[None, :],
                    column,
                    FEATURES,
                    SOURCE,
                    BLOCK_N,
                    BLOCK_D,
                    BLOCK_V,
                )
    return total


@triton.jit
def grad_mask_kernel(
    inputs,
    incoming,
    grad_mask,
    mask_batch,
    mask_heads,
    FEATURES: tl.constexpr,
    SOURCE: tl.constexpr,
    ADD_QUERIES: tl.constexpr,
    ADD_KEYS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One tile of the scores of one of the mask's mask_batch x mask_heads matrices, from all batches and heads that
    share it. grad_mask is [mask_batch, mask_heads, q_len, kv_len]; with ADD_QUERIES or ADD_KEYS a tile leaves one row
    or one column behind, and the dimension counts tiles. Of packed sequences the sizes of inputs are the mask's."""
    sizes = inputs.sizes
    row_tiles = tl.cdiv(sizes.q_len, BLOCK_M)
    # One dimension for both, because a grid's second holds 65,535 programs at most.
    tiles = row_tiles * tl.cdiv(sizes.kv_len, BLOCK_N)
    tile = tl.program_id(0) % tiles
    matrix = tl.program_id(0) // tiles
    mask_head = tl.cast(matrix % mask_heads, tl.int64)
    first_query = tile % row_tiles * BLOCK_M
    first_key = tile // row_tiles * BLOCK_N
    query = first_query + tl.arange(0, BLOCK_M)[:, None]
    key = first_key + tl.arange(0, BLOCK_N)[None, :]
    batches = sizes.batch // mask_batch
    if not FEATURES.packed:
        last_query = tl.minimum(first_query + BLOCK_M, sizes.q_len) - 1
        first, _, _, end = key_ranges(first_query, last_query, inputs, FEATURES, BLOCK_N)
        # A tile that no query sees has nothing to add up.
        seen = (first_key >= first) & (first_key < end)
        batches = tl.where(seen, batches, 0)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for b in tl.range(0, batches):
        # Shared dimensions have size 1 in the mask: one of each pair of batches, or heads, is 0.
        if FEATURES.packed:
            total = _add_sequence(
                total,
                inputs,
                incoming,
                tl.cast(b, tl.int64) + matrix // mask_heads,
                mask_head,
                sizes.heads // mask_heads,
                first_query,
                first_key,
                FEATURES,
                SOURCE,
                ADD_QUERIES,
                ADD_KEYS,
                BLOCK_M,
                BLOCK_N,
                BLOCK_D,
                BLOCK_V,
            )
        else:
            for h in tl.range(0, sizes.heads // mask_heads):
                total += _score_gradients(
                    inputs,
                    incoming,
                    tl.cast(b, tl.int64) + matrix // mask_heads,
                    tl.cast(h, tl.int64) + mask_head,
                    query,
                    key,
                    first_key,
                    FEATURES,
                    SOURCE,
                    BLOCK_N,
                    BLOCK_D,
                    BLOCK_V,
                )
    rows = query.to(tl.int64)
    columns = key
    row_end = sizes.q_len
    column_end = sizes.kv_len
    if ADD_QUERIES:
        total = tl.sum(total, 0)[None, :]
        rows = tl.zeros((1, 1), tl.int64) + tile % row_tiles
        row_end = row_tiles
    if ADD_KEYS:
        total = tl.sum(total, 1)[:, None]
        columns = tl.zeros((1, 1), tl.int32) + tile // row_tiles
        column_end = tl.cdiv(sizes.kv_len, BLOCK_N)
    at = tl.cast(matrix // mask_heads, tl.int64) * grad_mask.batch + mask_head * grad_mask.head
    store_tile(grad_mask.data + at + rows * grad_mask.row + columns, total, rows, row_end, columns, column_end)
