// From the products of a tile to its weights P^T = exp(s - lse) and score gradients dS^T = P^T (dP^T - delta). All
// matrices are keys x queries with rows of query_block.
#pragma once

#include "bigmodel/attention.h"
#include "cpu/gradient_tile.h"
#include "cpu/isa/vec_math.h"
#include "cpu/philox.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

namespace {

// body(position) for every vector of a tile that is seen.
template <class Body>
BIGMODEL_INLINE void for_each_seen(const TileShape& tile, Body body) {
  for (std::int64_t query = 0; query < tile.queries; query += lanes) {
    const std::int64_t end = tile.end[query / grain];
    for (std::int64_t key = tile.begin[query / grain]; key < end; ++key) body(key * query_block + query);
  }
}

// What a mask does to a tile.
enum class MaskEffect { keeps_all, keeps_none, changes };

template <class M>
void load_mask_as(const M* first, std::int64_t query_stride, std::int64_t key_stride, const TileShape& tile,
                  float* mask) {
  if (query_stride != 0) {
    copy_in(tile.keys, tile.queries, first, key_stride, query_stride, mask, query_block);
    return;
  }
  for (std::int64_t key = 0; key < tile.keys; ++key) {
    const F32 value = set1(reduce_add(load_first(first + key * key_stride, 1)));
    for (std::int64_t query = 0; query < tile.queries; query += lanes) store(mask + key * query_block + query, value);
  }
}

// One row of a boolean mask as an additive one: true is 0, false is -inf. Counts what is kept.
BIGMODEL_INLINE std::int64_t load_boolean_row(const std::uint8_t* first, std::int64_t stride, std::int64_t count,
                                              float* row) {
  std::int32_t kept = 0;
  for (std::int64_t j = 0; j < count; ++j) {
    row[j] = first[j * stride] ? 0.0f : -infinity;
    kept += first[j * stride] != 0;
  }
  return kept;
}

// `rows` is room for a tile, queries x keys.
MaskEffect load_boolean_mask(const std::uint8_t* first, std::int64_t query_stride, std::int64_t key_stride,
                             const TileShape& tile, float* rows, float* mask) {
  const std::int64_t queries = query_stride == 0 ? 1 : tile.queries;
  std::int64_t kept = 0;
  for (std::int64_t query = 0; query < queries; ++query) {
    const std::uint8_t* row = first + query * query_stride;
    float* additive = rows + query * key_block;
    // The usual stride as a constant: a loop that the compiler vectorises.
    kept += key_stride == 1 ? load_boolean_row(row, 1, tile.keys, additive)
                            : load_boolean_row(row, key_stride, tile.keys, additive);
  }
  if (kept == queries * tile.keys) return MaskEffect::keeps_all;
  if (kept == 0) return MaskEffect::keeps_none;
  load_mask_as(rows, query_stride == 0 ? 0 : key_block, 1, tile, mask);
  return MaskEffect::changes;
}

template <class T>
MaskEffect load_mask(const TensorView& view, std::int64_t b, std::int64_t h, const TileShape& tile, float* rows,
                     float* mask) {
  if (!view.data) return MaskEffect::keeps_all;
  const std::int64_t first =
      b * view.stride[0] + h * view.stride[1] + tile.first_query * view.stride[2] + tile.first_key * view.stride[3];
  if (view.dtype == DType::boolean) {
    return load_boolean_mask(static_cast<const std::uint8_t*>(view.data) + first, view.stride[2], view.stride[3], tile,
                             rows, mask);
  }
  if (view.dtype == DType::float32) {
    load_mask_as(static_cast<const float*>(view.data) + first, view.stride[2], view.stride[3], tile, mask);
  } else {
    load_mask_as(static_cast<const T*>(view.data) + first, view.stride[2], view.stride[3], tile, mask);
  }
  return MaskEffect::changes;
}

// What is known of each row of weights; a row without keys has the lse +inf, which makes its weights 0.
struct RowTerms {
  const float *lse, *delta;
  const float* shift;  // a correction of lse, as a power of two
};

// What turns the products of one head's queries and keys into scores, apart from the removals of a Band.
struct ScoreRules {
  float scale, softcap;
  float slope;        // ALiBi's
  const float* mask;  // of this tile; may be absent
  bool any() const { return softcap > 0 || slope != 0 || mask; }
};

// scores: products in, scores - lse out, since the difference is right even where an additive mask makes both huge.
// derivative: d score / d (scale * product), written where there is a softcap.
__attribute__((noinline)) void apply_rules(const ScoreRules& rules, const Band& band, const TileShape& tile,
                                           const float* lse, float* scores, float* derivative) {
  const F32 cap = set1(rules.softcap), inverse_cap = set1(rules.softcap > 0 ? 1 / rules.softcap : 0.0f);
  float lane_numbers[lanes];
  for (int lane = 0; lane < lanes; ++lane) lane_numbers[lane] = float(lane);
  for (std::int64_t query = 0; query < tile.queries; query += lanes) {
    const F32 diagonal = set1(float(tile.first_query + query + band.offset - tile.first_key)) + load(lane_numbers);
    const F32 row_lse = load(lse + query);
    const std::int64_t end = tile.end[query / grain];
    for (std::int64_t key = tile.begin[query / grain]; key < end; ++key) {
      const std::int64_t at = key * query_block + query;
      F32 score = load(scores + at) * set1(rules.scale);
      if (rules.softcap > 0) {
        const F32 t = tanh(score * inverse_cap);
        store(derivative + at, fnma(t, t, set1(1.0f)));
        score = cap * t;
      }
      if (rules.slope != 0) score = fnma(set1(rules.slope), abs(diagonal - set1(float(key))), score);
      if (rules.mask) score = score + load(rules.mask + at);
      store(scores + at, score - row_lse);
    }
  }
}

// The lanes of one vector of queries, and which keys of the tile they keep, as whole numbers relative to its first key.
struct KeptKeys {
  F32 first, last;
};

KeptKeys kept_keys(const Band& band, const TileShape& tile, std::int64_t query) {
  float first[lanes], last[lanes];
  for (int lane = 0; lane < lanes; ++lane) {
    const std::int64_t begin = band.first_key(tile.first_query + query + lane) - tile.first_key;
    const std::int64_t end = band.end_key(tile.first_query + query + lane) - tile.first_key;
    first[lane] = float(begin < 0 ? 0 : begin > tile.keys ? tile.keys : begin);
    last[lane] = float(end < 0 ? 0 : end > tile.keys ? tile.keys : end) - 1;
  }
  return {load(first), load(last)};
}

// weights: scores in (products when factor says so, else what apply_rules left), P^T out; grad_scores: dP^T in, dS^T
// out (absent: only the weights are wanted). factor makes powers of two of scores; keep holds the dropout's factors.
template <bool removes, bool drops>
__attribute__((noinline)) void weigh(const Band& band, const TileShape& tile, float factor, const RowTerms& rows,
                                     const float* keep, float* weights, float* grad_scores) {
  for (std::int64_t query = 0; query < tile.queries; query += lanes) {
    F32 row_shift = load(rows.shift + query);
    if (rows.lse) row_shift = fnma(load(rows.lse + query), set1(log2_e), row_shift);
    const F32 row_delta = load(rows.delta + query);
    const KeptKeys kept = removes ? kept_keys(band, tile, query) : KeptKeys{};
    const std::int64_t end = tile.end[query / grain];
    for (std::int64_t key = tile.begin[query / grain]; key < end; ++key) {
      const std::int64_t at = key * query_block + query;
      F32 weight = exp2(fma(load(weights + at), set1(factor), row_shift));
      if constexpr (removes) {
        const F32 j = set1(float(key));
        weight = select(less(j, kept.first), zero(), select(less(kept.last, j), zero(), weight));
      }
      F32 grad_weight = grad_scores ? load(grad_scores + at) : zero();
      F32 kept_weight = weight;
      if constexpr (drops) {
        kept_weight = weight * load(keep + at);
        grad_weight = grad_weight * load(keep + at);
      }
      store(weights + at, kept_weight);
      if (grad_scores) store(grad_scores + at, weight * (grad_weight - row_delta));
    }
  }
}

// keep = 1 / (1 - p) or 0 for each element of the tile.
void load_dropout(const Dropout& dropout, std::int64_t b, std::int64_t h, const TileShape& tile, float* keep) {
  for (std::int64_t query = 0; query < tile.queries; query += lanes) {
    PhiloxWord rows;
    for (int lane = 0; lane < lanes; ++lane) rows.lane[lane] = std::uint32_t(tile.first_query + query + lane);
    dropout_factors(dropout, b, same_word(std::uint32_t(h)), rows, tile.first_key, tile.keys, keep + query,
                    query_block);
  }
}

// sums[query] += sum over the tile's keys.
void add_keys(const TileShape& tile, const float* scores, float* sums) {
  for (std::int64_t query = 0; query < tile.queries; query += lanes) {
    F32 sum = load(sums + query);
    const std::int64_t end = tile.end[query / grain];
    for (std::int64_t key = tile.begin[query / grain]; key < end; ++key)
      sum = sum + load(scores + key * query_block + query);
    store(sums + query, sum);
  }
}

}  // namespace

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
