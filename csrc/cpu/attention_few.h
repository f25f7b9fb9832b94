// The two products of a panel with few queries: with one query per lane most lanes would idle, so here the lanes run
// along head_dim and value_dim. Operands and results are those of the tile GEMM they replace.
#pragma once

#include "cpu/isa/pack.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// So few that the horizontal sums cost less than the idle lanes.
BIGMODEL_INLINE bool few_queries(std::int64_t queries) { return queries <= lanes / 2; }

// dot(query, key row) for `lanes` rows: transposing their partial sums turns `lanes` horizontal sums into vertical
// ones.
BIGMODEL_INLINE F32 dot_rows(std::int64_t depth, const float* query, const float* key, std::int64_t stride) {
  F32 sums[lanes];
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) sums[i] = zero();
  for (std::int64_t p = 0; p < depth; p += lanes) {
    const F32 q = load(query + p);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) sums[i] = fma(q, load(key + i * stride + p), sums[i]);
  }
  transpose(sums);
  F32 sum = sums[0];
#pragma GCC unroll 16
  for (int i = 1; i < lanes; ++i) sum = sum + sums[i];
  return sum;
}

BIGMODEL_INLINE float dot_row(std::int64_t depth, const float* query, const float* key) {
  F32 sum = zero();
  for (std::int64_t p = 0; p < depth; p += lanes) sum = fma(load(query + p), load(key + p), sum);
  return reduce_add(sum);
}

// scores[key][lane] = dot(query lane, key row) for the first lanes, 0 in the rest of their vector. query is depth x
// lanes, depth whole vectors; `room` holds queries x depth floats.
static __attribute__((noinline)) void multiply_few_queries(std::int64_t keys, std::int64_t queries, std::int64_t depth,
                                                           const float* key, std::int64_t stride, const float* query,
                                                           float* room, float* scores) {
  for (std::int64_t row = 0; row < keys; ++row) store(scores + row * tile_columns, zero());
  for (std::int64_t lane = 0; lane < queries; ++lane) {
    float* q = room + lane * depth;
    for (std::int64_t p = 0; p < depth; ++p) q[p] = query[p * tile_columns + lane];
  }
  std::int64_t row = 0;
  for (; row + lanes <= keys; row += lanes) {
    for (std::int64_t lane = 0; lane < queries; ++lane) {
      float dots[lanes];
      store(dots, dot_rows(depth, room + lane * depth, key + row * stride, stride));
      for (int i = 0; i < lanes; ++i) scores[(row + i) * tile_columns + lane] = dots[i];
    }
  }
  for (; row < keys; ++row) {
    for (std::int64_t lane = 0; lane < queries; ++lane) {
      scores[row * tile_columns + lane] = dot_row(depth, room + lane * depth, key + row * stride);
    }
  }
}

// output[column][lane] += sum over keys of weights[key][lane] * value[key][column], for `vectors` vectors of columns,
// the last of them with `count` columns.
template <int vectors>
BIGMODEL_INLINE void add_weighted_columns(std::int64_t keys, std::int64_t lane, const float* weights,
                                          const float* value, std::int64_t stride, std::int64_t count, float* output) {
  F32 sums[vectors];
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) sums[v] = zero();
  for (std::int64_t key = 0; key < keys; ++key) {
    const F32 weight = set1(weights[key * tile_columns + lane]);
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      const float* at = value + key * stride + v * lanes;
      sums[v] = fma(weight, vectors > 1 ? load(at) : load_up_to(at, count), sums[v]);
    }
  }
  float columns[vectors * lanes];
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) store(columns + v * lanes, sums[v]);
  for (std::int64_t i = 0; i < (vectors - 1) * lanes + count; ++i) output[i * tile_columns + lane] += columns[i];
}

// output[value_dim x lanes] += value^T weights
static __attribute__((noinline)) void add_few_queries(std::int64_t keys, std::int64_t queries, std::int64_t value_dim,
                                                      const float* value, std::int64_t stride, const float* weights,
                                                      float* output) {
  for (std::int64_t lane = 0; lane < queries; ++lane) {
    std::int64_t column = 0;
    for (; column + 8 * lanes <= value_dim; column += 8 * lanes) {
      add_weighted_columns<8>(keys, lane, weights, value + column, stride, lanes, output + column * tile_columns);
    }
    for (; column + 4 * lanes <= value_dim; column += 4 * lanes) {
      add_weighted_columns<4>(keys, lane, weights, value + column, stride, lanes, output + column * tile_columns);
    }
    for (; column < value_dim; column += lanes) {
      const std::int64_t count = value_dim - column < lanes ? value_dim - column : lanes;
      add_weighted_columns<1>(keys, lane, weights, value + column, stride, count, output + column * tile_columns);
    }
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
