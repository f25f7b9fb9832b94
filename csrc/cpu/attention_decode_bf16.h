// The two products of decoding a bfloat16 cache for bfloat16 queries, where the CPU multiplies pairs of bfloat16: half
// as many multiplications as in fp32, and no conversions. Weights are rounded to bfloat16, as attention's are.
#pragma once

#include "cpu/attention_decode_products.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

#if defined(BIGMODEL_BF16_DOT)

inline constexpr bool has_bf16_dots = true;

// dots[key][query] of `keys` keys.
template <int queries, int keys>
BIGMODEL_INLINE void dot_bf16_keys(std::int64_t depth, const bfloat16* query, std::int64_t stride,
                                   const bfloat16* const* key, float* dots) {
  F32 sums[keys][tile_queries];
#pragma GCC unroll 8
  for (int k = 0; k < keys; ++k) {
#pragma GCC unroll 4
    for (int q = 0; q < tile_queries; ++q) sums[k][q] = zero();
  }
  const auto step = [&](std::int64_t p, auto load_key) BIGMODEL_INLINE_LAMBDA {
    Pairs b[keys];
#pragma GCC unroll 8
    for (int k = 0; k < keys; ++k) b[k] = load_key(key[k] + p);
#pragma GCC unroll 4
    for (int q = 0; q < queries; ++q) {
      const Pairs a = load_pairs(query + q * stride + p);
#pragma GCC unroll 8
      for (int k = 0; k < keys; ++k) sums[k][q] = multiply_add(a, b[k], sums[k][q]);
    }
  };
  std::int64_t p = 0;
  for (; p + pair_lanes <= depth; p += pair_lanes) {
    step(p, [](const bfloat16* from) BIGMODEL_INLINE_LAMBDA { return load_pairs(from); });
  }
  if (p < depth) {
    step(p, [&](const bfloat16* from) BIGMODEL_INLINE_LAMBDA { return load_last_pairs(from, depth - p); });
  }
  store_dots(dots, sums);
}

template <int queries>
static __attribute__((noinline)) void dot_bf16_tile(std::int64_t keys, std::int64_t depth, const bfloat16* query,
                                                    std::int64_t stride, const bfloat16* const* key, float* dots,
                                                    Prefetch<bfloat16>& prefetch) {
  over_keys<queries, 8>(keys, prefetch, [&]<int count>(std::int64_t k) BIGMODEL_INLINE_LAMBDA {
    dot_bf16_keys<queries, count>(depth, query, stride, key + k, dots + k * tile_queries);
  });
}

// Weights [key][query] as pairs of keys: pairs[key / 2][query]. After an odd number of keys the last value is read
// twice, with half of its weight each time: a zero would make NaN of an infinite value.
BIGMODEL_INLINE void pair_weights(std::int64_t keys, float* weights, BFloat16Pair* pairs) {
  if (keys % 2 == 1) {
    float* const last = weights + (keys - 1) * tile_queries;
    for (int q = 0; q < tile_queries; ++q) last[q] *= 0.5f, last[tile_queries + q] = last[q];
    ++keys;
  }
  bfloat16 rounded[(64 + 2) * tile_queries + pair_lanes];
  for (std::int64_t i = 0; i < keys * tile_queries; i += lanes) store(rounded + i, load(weights + i));
  for (std::int64_t pair = 0; pair < keys / 2; ++pair) {
    const bfloat16* from = rounded + 2 * pair * tile_queries;
    for (int q = 0; q < tile_queries; ++q) pairs[pair * tile_queries + q] = {{from[q], from[tile_queries + q]}};
  }
}

// output[query][column ...] = keep[query] * itself + sum of pairs * values, for `vectors` pairs of vectors of columns,
// in the order of position_of. value has an even number of rows.
template <int queries, int vectors, class Load>
BIGMODEL_INLINE void add_bf16_columns(std::int64_t keys, const BFloat16Pair* pairs, const bfloat16* const* value,
                                      std::int64_t column, Load load_part, const float* keep, float* output,
                                      std::int64_t stride) {
  F32 sums[queries][2 * vectors];
#pragma GCC unroll 4
  for (int q = 0; q < queries; ++q) {
#pragma GCC unroll 8
    for (int v = 0; v < 2 * vectors; ++v) {
      sums[q][v] = load(output + q * stride + column + v * lanes) * set1(keep[q]);
    }
  }
  for (std::int64_t key = 0; key < keys; key += 2, pairs += tile_queries) {
    Pairs b[2 * vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const std::int64_t at = column + v * pair_lanes;
      interleave(load_part(value[key] + at), load_part(value[key + 1] + at), b[2 * v], b[2 * v + 1]);
    }
#pragma GCC unroll 4
    for (int q = 0; q < queries; ++q) {
      const Pairs weights = broadcast(pairs[q].k);
#pragma GCC unroll 8
      for (int v = 0; v < 2 * vectors; ++v) sums[q][v] = multiply_add(weights, b[v], sums[q][v]);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < queries; ++q) {
#pragma GCC unroll 8
    for (int v = 0; v < 2 * vectors; ++v) store(output + q * stride + column + v * lanes, sums[q][v]);
  }
}

template <int queries>
static __attribute__((noinline)) void add_bf16_tile(std::int64_t keys, std::int64_t value_dim, float* weights,
                                                    const bfloat16* const* value, const float* keep, float* output,
                                                    std::int64_t stride, Prefetch<bfloat16>& prefetch) {
  constexpr int vectors = decode_sums / queries >= 4 ? decode_sums / queries / 2 : 1;
  BFloat16Pair pairs[32 * tile_queries];
  pair_weights(keys, weights, pairs);
  const auto whole = [](const bfloat16* from) BIGMODEL_INLINE_LAMBDA { return load_pairs(from); };
  std::int64_t column = 0;
  for (; column + vectors * pair_lanes <= value_dim; column += vectors * pair_lanes) {
    prefetch.ask_for(column + vectors * pair_lanes, value_dim);
    add_bf16_columns<queries, vectors>(keys, pairs, value, column, whole, keep, output, stride);
  }
  for (; column + pair_lanes <= value_dim; column += pair_lanes) {
    prefetch.ask_for(column + pair_lanes, value_dim);
    add_bf16_columns<queries, 1>(keys, pairs, value, column, whole, keep, output, stride);
  }
  if (column == value_dim) return;
  prefetch.ask_for(value_dim, value_dim);
  add_bf16_columns<queries, 1>(
      keys, pairs, value, column,
      [&](const bfloat16* from) BIGMODEL_INLINE_LAMBDA { return load_last_pairs(from, value_dim - column); }, keep,
      output, stride);
}

#else

inline constexpr bool has_bf16_dots = false;

#endif

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
