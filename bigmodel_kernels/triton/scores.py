"""From queries and keys to scores: products, scale, softcap, ALiBi, mask, removals, in the order that
csrc/include/bigmodel/attention.h states; and which keys and queries a tile needs to look at.

Scores are in units of log2: exp(s) is exp2 of what is computed here, times `score_unit`. An additive mask of less than
about -2.3e38, such as the lowest number of fp32, is beyond the range of fp32 in these units and removes like -inf.

Everything works on tiles of either orientation: `query` and `key` hold positions and broadcast against each other.
`inputs` is an attention_inputs.Inputs, FEATURES an attention_inputs.Features.
"""

import triton
import triton.language as tl

from .tiles import index, product, product_of_rows

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def tanh(x):
    """Accurate to about two units in the last place, small arguments included."""
    square = x * x
    series = 0.017131344 * square - 0.052984239
    series = series * square + 0.1332475050
    series = series * square - 0.3333306794
    series = series * square + 0.9999999868
    far = 1.0 - 2.0 / (tl.exp2(tl.abs(x) * (2.0 * LOG2E)) + 1.0)
    return tl.where(tl.abs(x) < 0.5, x * series, tl.where(x < 0, -far, far))


@triton.jit
def feature_products(
    left, right, left_rows, right_rows, features, EXACT: tl.constexpr, BLOCK: tl.constexpr, FEATURES: tl.constexpr
):
    """left right^T of two tiles [rows, features] or, where FEATURES.chunk says so, of the Rows that they are: a tile
    that nothing else needs is then not loaded. BLOCK: of the tiles' columns; EXACT: all of them are features."""
    if FEATURES.chunk:
        products = product_of_rows(
            left_rows, right_rows, features, min(FEATURES.chunk, BLOCK), EXACT, FEATURES.wide, FEATURES.precision
        )
    else:
        products = product(left, tl.trans(right), None, FEATURES.precision)
    return products


@triton.jit
def score_unit(inputs, FEATURES: tl.constexpr):
    """What the scores of tile_scores are still to be multiplied by: where nothing but removals follows the scale, it is
    left to the multiply-add that subtracts the softmax's maximum."""
    return inputs.rules.scale if FEATURES.plain else 1.0


@triton.jit
def load_slopes(inputs, batch, head, FEATURES: tl.constexpr):
    """The ALiBi slopes of these heads, in units of log2; 0 without ALiBi."""
    slope = 0.0
    if FEATURES.alibi:
        at = tl.cast(batch, tl.int64) * inputs.slopes.batch + tl.cast(head, tl.int64) * inputs.slopes.head
        slope = tl.load(inputs.slopes.data + at) * LOG2E
    return slope


@triton.jit
def mask_offset(inputs, batch, head, query, FEATURES: tl.constexpr):
    """Offset of the rows of the mask that these queries have, in 64 bits; 0 without a mask."""
    rows = 0
    if FEATURES.mask != "none":
        mask = inputs.mask
        rows = tl.minimum(query, inputs.sizes.q_len - 1).to(tl.int64) * mask.row
        rows += tl.cast(batch, tl.int64) * mask.batch + tl.cast(head, tl.int64) * mask.head
    return rows


@triton.jit
def tile_scores(
    products,
    query,
    key,
    slope,
    mask_offset,
    inputs,
    FEATURES: tl.constexpr,
    BOUNDED: tl.constexpr,
    BANDED: tl.constexpr,
):
    """(scores, -inf where removed; with a softcap the tanh that made them).

    BOUNDED: some keys may lie beyond the last; BANDED: some may lie outside the queries' band. Both remove.
    """
    rules = inputs.rules
    capped = products
    if FEATURES.plain:
        scores = products
    elif FEATURES.softcap:
        capped = tanh(products * rules.scale)
        scores = capped * rules.cap
    else:
        scores = products * rules.scale
    if FEATURES.alibi:
        scores -= slope * tl.abs(query + inputs.band.diagonal - key).to(tl.float32)
    if FEATURES.mask != "none":
        pointers = inputs.mask.data + mask_offset + index(key, FEATURES.wide) * inputs.mask.column
        mask = tl.load(pointers, mask=key < inputs.sizes.kv_len, other=0) if BOUNDED else tl.load(pointers)
        if FEATURES.mask == "bool":
            scores = tl.where(mask, scores, float("-inf"))
        else:
            scores += mask.to(tl.float32) * LOG2E
    return _remove(scores, query, key, inputs, FEATURES, BOUNDED, BANDED), capped


@triton.jit
def _remove(scores, query, key, inputs, FEATURES: tl.constexpr, BOUNDED: tl.constexpr, BANDED: tl.constexpr):
    band = inputs.band
    if BOUNDED:
        scores = tl.where(key < inputs.sizes.kv_len, scores, float("-inf"))
    if BANDED and FEATURES.after:
        scores = tl.where(key <= query + (band.diagonal + band.after), scores, float("-inf"))
    if BANDED and FEATURES.before:
        scores = tl.where(key >= query + (band.diagonal - band.before), scores, float("-inf"))
    return scores


@triton.jit
def key_ranges(first_query, last_query, inputs, FEATURES: tl.constexpr, BLOCK: tl.constexpr):
    """(first, full_first, full_end, end): the queries [first_query, last_query] see keys in [first, end) alone, and
    all of them see all keys of [full_first, full_end). All but the end are multiples of BLOCK."""
    band = inputs.band
    kv_len = inputs.sizes.kv_len
    first = last_query * 0
    full_first = first
    end = first + kv_len
    full_end = end
    if FEATURES.before:
        first = tl.maximum(first_query + band.diagonal - band.before, 0) // BLOCK * BLOCK
        full_first = tl.cdiv(tl.maximum(last_query + band.diagonal - band.before, 0), BLOCK) * BLOCK
    if FEATURES.after:
        end = tl.minimum(end, last_query + (band.diagonal + band.after + 1))
        full_end = tl.minimum(end, first_query + (band.diagonal + band.after + 1))
    end = tl.maximum(end, first)
    full_end = tl.maximum(full_end, first) // BLOCK * BLOCK
    full_first = tl.minimum(full_first, full_end)
    return first, full_first, full_end, end


@triton.jit
def query_ranges(first_key, last_key, inputs, FEATURES: tl.constexpr, BLOCK: tl.constexpr):
    """key_ranges with the roles exchanged, for the keys [first_key, last_key]: which queries see them. Queries beyond
    the last are not told apart: their lse removes them."""
    band = inputs.band
    q_len = inputs.sizes.q_len
    first = last_key * 0
    full_first = first
    end = first + q_len
    full_end = tl.cdiv(end, BLOCK) * BLOCK
    if FEATURES.after:
        first = tl.maximum(first_key - (band.diagonal + band.after), 0) // BLOCK * BLOCK
        full_first = tl.cdiv(tl.maximum(last_key - (band.diagonal + band.after), 0), BLOCK) * BLOCK
    if FEATURES.before:
        end = tl.minimum(end, last_key - (band.diagonal - band.before) + 1)
        full_end = tl.minimum(full_end, first_key - (band.diagonal - band.before) + 1)
    end = tl.maximum(end, first)
    full_end = tl.maximum(full_end, first) // BLOCK * BLOCK
    full_first = tl.minimum(full_first, full_end)
    return first, full_first, full_end, end
