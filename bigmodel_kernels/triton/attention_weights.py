"""The softmax's weights of attention, recomputed from query, key and the lse of a forward pass. Averaged over the
heads, they are added up tile by tile and never in memory per head."""

import triton
import triton.language as tl
from torch import Tensor

from .attention_inputs import Features, Inputs, View, padded, prepare, view
from .attention_launch import Call, Device, arithmetic_of, attention_launch, device_of, features_at_a_time
from .dropout import dropout_tile, load_seed
from .scores import LOG2E, feature_products, key_ranges, load_slopes, mask_offset, score_unit, tile_scores
from .tiles import Rows, index, load_tile, store_tile


@triton.jit
def _tile_weights(
    inputs,
    lse,
    batch,
    head,
    query,
    key,
    first_key,
    FEATURES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The weights of one tile of one head, after dropout. batch and head are 64 bits wide, query is [BLOCK_M, 1] and
    key [1, BLOCK_N]."""
    sizes = inputs.sizes
    kv_head = head // sizes.group
    d = index(tl.arange(0, BLOCK_D)[None, :], FEATURES.wide)
    row, column = query.to(tl.int64), tl.trans(key).to(tl.int64)
    queries = inputs.query.data + batch * inputs.query.batch + head * inputs.query.head
    query_rows = Rows(queries + tl.minimum(row, sizes.q_len - 1) * inputs.query.row, inputs.query.column)
    pointers = queries + row * inputs.query.row + d * inputs.query.column
    q = load_tile(pointers, row, sizes.q_len, d, sizes.head_dim, True, not FEATURES.head_exact)
    keys = inputs.key.data + batch * inputs.key.batch + kv_head * inputs.key.head
    key_rows = Rows(keys + tl.minimum(column, sizes.kv_len - 1) * inputs.key.row, inputs.key.column)
    pointers = keys + column * inputs.key.row + d * inputs.key.column
    k = load_tile(pointers, column, sizes.kv_len, d, sizes.head_dim, True, not FEATURES.head_exact)
    scores, _ = tile_scores(
        feature_products(q, k, query_rows, key_rows, sizes.head_dim, FEATURES.head_exact, BLOCK_D, FEATURES),
        query,
        key,
        load_slopes(inputs, batch, head, FEATURES),
        mask_offset(inputs, batch, head, query, FEATURES),
        inputs,
        FEATURES,
        True,
        True,
    )
    rows = lse.data + batch * lse.batch + head * lse.head + row * lse.row
    row_lse = tl.load(rows, mask=query < sizes.q_len, other=float("-inf")) * LOG2E
    # A row without weights has an lse of -inf.
    row_lse = tl.where(row_lse == float("-inf"), float("inf"), row_lse)
    weights = tl.exp2(scores * score_unit(inputs, FEATURES) - row_lse)
    if FEATURES.dropout:
        dropout = inputs.dropout
        seed_lo, seed_hi = load_seed(dropout.seed)
        weights *= dropout_tile(
            seed_lo, seed_hi, batch, head, query, first_key, dropout.threshold, dropout.scale, BLOCK_N, False
        )
    return weights


@triton.jit
def _attention_weights_kernel(
    inputs,
    lse,
    weights,
    heads_added,
    FEATURES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of the weights of one head or, with heads_added the number of heads instead of 1, of their mean."""
    sizes = inputs.sizes
    row_tiles = tl.cdiv(sizes.q_len, BLOCK_M)
    column_tiles = tl.cdiv(sizes.kv_len, BLOCK_N)
    tile = tl.program_id(0) % (row_tiles * column_tiles)
    matrix = tl.program_id(0) // (row_tiles * column_tiles)
    first_query = tile // column_tiles * BLOCK_M
    first_key = tile % column_tiles * BLOCK_N
    last_query = tl.minimum(first_query + BLOCK_M, sizes.q_len) - 1
    query = first_query + tl.arange(0, BLOCK_M)[:, None]
    key = first_key + tl.arange(0, BLOCK_N)[None, :]
    matrices = sizes.heads // heads_added
    batch = tl.cast(matrix // matrices, tl.int64)
    first_head = tl.cast(matrix % matrices, tl.int64)
    first, _, _, end = key_ranges(first_query, last_query, inputs, FEATURES, BLOCK_N)
    # A tile that no query sees is 0, and costs no product.
    heads = tl.where((first_key >= first) & (first_key < end), heads_added, 0)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for member in tl.range(0, heads):
        total += _tile_weights(
            inputs, lse, batch, first_head + member, query, key, first_key, FEATURES, BLOCK_N, BLOCK_D
        )
    pointers = weights.data + batch * weights.batch + first_head * weights.head
    pointers += query.to(tl.int64) * weights.row + key
    store_tile(pointers, total / heads_added, query, sizes.q_len, key, sizes.kv_len)


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
    """exp(scores - lse) with dropout, [batch, heads, q_len, kv_len] in query's dtype, or its mean over the heads, with
    one head. Arguments are those of attention; lse is its result, [batch, heads, q_len] in fp32.
    Raises: ValueError for shapes, dtypes or options that do not fit together.
    """
    inputs, features = prepare(
        "attention_weights",
        query,
        key,
        None,
        mask,
        alibi_slopes,
        None,
        dropout_seed,
        causal=causal,
        scale=scale,
        window_left=window_left,
        window_right=window_right,
        softcap=softcap,
        dropout_p=dropout_p,
    )
    batch, heads, q_len, _ = query.shape
    weights = query.new_empty(batch, 1 if average_heads else heads, q_len, key.shape[2])
    if weights.numel() and heads:
        weights_call(inputs, features, lse, weights, average_heads, device_of(query)).run()
    else:
        weights.zero_()
    return weights


def weights_call(
    inputs: Inputs, features: Features, lse: Tensor, weights: Tensor, average_heads: bool, device: Device
) -> Call:
    """The launch that computes the weights; there is at least one."""
    sizes = inputs.sizes
    block_d = padded(sizes.head_dim)
    arithmetic = arithmetic_of(inputs.query.data.dtype, features.precision)
    launch = attention_launch("weights", device, block_d, arithmetic, dropout=features.dropout)
    features = features._replace(chunk=features_at_a_time(device, block_d, arithmetic))
    heads_added = sizes.heads if average_heads else 1
    tiles = triton.cdiv(sizes.q_len, launch.block_m) * triton.cdiv(sizes.kv_len, launch.block_n)
    arguments = (inputs, View(lse, *lse.stride(), 0), view(weights), heads_added, features)
    arguments += (launch.block_m, launch.block_n, block_d)
    grid = (tiles * sizes.batch * sizes.heads // heads_added,)
    return Call("weights", _attention_weights_kernel, grid, arguments, launch.num_warps, launch.num_stages)
