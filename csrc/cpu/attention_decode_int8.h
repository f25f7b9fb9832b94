// The two products of decoding over an int8 cache in integers, for queries of 16-bit dtypes: queries and, block by
// block, weights are rounded to 16-bit integers of a common scale, an error of 2^-16 of the largest, far below their
// own rounding. In fp32 the conversions alone take longer than reading int8 rows (bench/NOTES.md has the figures).
#pragma once

#include "cpu/attention_decode_products.h"
#include "cpu/isa/dot_int16.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

inline constexpr float largest_int16 = 32767.0f;
// The sum of so many products of int16 and int8 stays in 32 bits.
inline constexpr std::int64_t most_int_head_dim = 512;

// A row of fp32, whole pairs of vectors, as integers; returns what they are multiples of.
static float quantize_query(std::int64_t stride, const float* row, std::int16_t* integers) {
  F32 largest = zero(), unbounded = zero();  // the maximum may lose a NaN
  for (std::int64_t p = 0; p < stride; p += lanes) {
    largest = max(largest, abs(load(row + p)));
    unbounded = fma(load(row + p), zero(), unbounded);
  }
  const float unit = reduce_max(largest) / largest_int16 + reduce_add(unbounded);
  for (std::int64_t p = 0; p < stride; p += lanes) {
    std::int32_t whole[lanes];
    const I32 rounded = unit > 0 ? to_int(round(load(row + p) / set1(unit))) : set1_int(0);
    __builtin_memcpy(whole, &rounded.v, sizeof whole);
    for (int i = 0; i < lanes; ++i) integers[p + i] = std::int16_t(whole[i]);
  }
  return unit;
}

// The elements of a row at p, zeros from its end on.
BIGMODEL_INLINE I16 load_last_int16(const std::int8_t* p, std::int64_t count) {
  std::int8_t buffer[int16_lanes] = {};
  for (std::int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return load_int16(buffer);
}

// dots[key][query] in units of the query's.
template <int queries, int keys>
BIGMODEL_INLINE void dot_int8_keys(std::int64_t depth, const std::int16_t* query, std::int64_t stride,
                                   const std::int8_t* const* key, float* dots) {
  I32 sums[keys][tile_queries];
#pragma GCC unroll 8
  for (int k = 0; k < keys; ++k) {
#pragma GCC unroll 4
    for (int q = 0; q < tile_queries; ++q) sums[k][q] = set1_int(0);
  }
  const auto step = [&](std::int64_t p, auto load_key) BIGMODEL_INLINE_LAMBDA {
    I16 b[keys];
#pragma GCC unroll 8
    for (int k = 0; k < keys; ++k) b[k] = load_key(key[k] + p);
#pragma GCC unroll 4
    for (int q = 0; q < queries; ++q) {
      I16 a = load_int16(query + q * stride + p);
      keep_in_register(a);
#pragma GCC unroll 8
      for (int k = 0; k < keys; ++k) sums[k][q] = dot_pairs(a, b[k], sums[k][q]);
    }
  };
  std::int64_t p = 0;
  for (; p + int16_lanes <= depth; p += int16_lanes) {
    step(p, [](const std::int8_t* from) BIGMODEL_INLINE_LAMBDA { return load_int16(from); });
  }
  if (p < depth) {
    step(p, [&](const std::int8_t* from) BIGMODEL_INLINE_LAMBDA { return load_last_int16(from, depth - p); });
  }
  store_dots(dots, sums);
}

template <int queries>
static __attribute__((noinline)) void dot_int8_tile(std::int64_t keys, std::int64_t depth, const std::int16_t* query,
                                                    std::int64_t stride, const std::int8_t* const* key, float* dots,
                                                    Prefetch<std::int8_t>& prefetch) {
  over_keys<queries, 4>(keys, prefetch, [&]<int count>(std::int64_t k) BIGMODEL_INLINE_LAMBDA {
    dot_int8_keys<queries, count>(depth, query, stride, key + k, dots + k * tile_queries);
  });
}

// Weights [key][query] as integers, two keys in one word: pairs[key / 2][query]; unit[query] is what they are multiples
// of. There are zeros after the weights up to an even number of keys.
static __attribute__((noinline)) void quantize_weights(std::int64_t keys, const float* weights, std::int32_t* pairs,
                                                       float* unit) {
  const std::int64_t count = round_up(keys * tile_queries, lanes);
  F32 largest = zero(), unbounded = zero();
  for (std::int64_t i = 0; i < count; i += lanes) {
    largest = max(largest, abs(load(weights + i)));  // negative where a value's scale is
    unbounded = fma(load(weights + i), zero(), unbounded);
  }
  float each[lanes], lost[lanes], inverse[lanes];
  store(each, largest);
  store(lost, unbounded);
  for (int q = 0; q < tile_queries; ++q) {
    float m = each[q], nan = lost[q];
    for (int i = q + tile_queries; i < lanes; i += tile_queries) m = each[i] > m ? each[i] : m, nan += lost[i];
    unit[q] = m / largest_int16 + nan;
  }
  for (int i = 0; i < lanes; ++i) inverse[i] = unit[i % tile_queries] > 0 ? 1.0f / unit[i % tile_queries] : 0.0f;
  const F32 factor = load(inverse);
  std::int32_t whole[(64 + 2) * tile_queries];
  for (std::int64_t i = 0; i < count; i += lanes) {
    const I32 rounded = to_int(round(max(set1(-largest_int16), min(set1(largest_int16), load(weights + i) * factor))));
    __builtin_memcpy(whole + i, &rounded.v, sizeof rounded.v);
  }
  if (keys % 2 == 1) {
    for (int q = 0; q < tile_queries; ++q) whole[keys * tile_queries + q] = 0;
  }
  for (std::int64_t pair = 0; pair < (keys + 1) / 2; ++pair) {
    const std::int32_t* from = whole + 2 * pair * tile_queries;
    for (int q = 0; q < tile_queries; ++q) {
      pairs[pair * tile_queries + q] = (from[q] & 0xffff) | from[tile_queries + q] << 16;
    }
  }
}

// output[query][column ...] = keep[query] * itself + unit[query] * sum of pairs * values, for some pairs of vectors of
// columns. value has an even number of rows.
template <int queries, int together, class Load>
BIGMODEL_INLINE void add_int8_columns(std::int64_t keys, const std::int32_t* pairs, const float* unit,
                                      const std::int8_t* const* value, std::int64_t column, Load load_two,
                                      const float* keep, float* output, std::int64_t stride) {
  I32 sums[queries][2 * together];
#pragma GCC unroll 4
  for (int q = 0; q < queries; ++q) {
#pragma GCC unroll 4
    for (int v = 0; v < 2 * together; ++v) sums[q][v] = set1_int(0);
  }
  for (std::int64_t key = 0; key < keys; key += 2, pairs += tile_queries) {
    I16 values[2 * together];
#pragma GCC unroll 2
    for (int v = 0; v < 2 * together; v += 2) {
      const std::int64_t at = column + v * lanes;
      load_two(value[key] + at, value[key + 1] + at, values[v], values[v + 1]);
    }
#pragma GCC unroll 4
    for (int q = 0; q < queries; ++q) {
      I16 weights = set1_pair(pairs[q]);
      keep_in_register(weights);
#pragma GCC unroll 4
      for (int v = 0; v < 2 * together; ++v) sums[q][v] = dot_pairs(weights, values[v], sums[q][v]);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < queries; ++q) {
#pragma GCC unroll 2
    for (int v = 0; v < 2 * together; v += 2) put_in_order(sums[q][v], sums[q][v + 1]);
#pragma GCC unroll 4
    for (int v = 0; v < 2 * together; ++v) {
      float* to = output + q * stride + column + v * lanes;
      store(to, fma(to_float(sums[q][v]), set1(unit[q]), load(to) * set1(keep[q])));
    }
  }
}

template <int queries>
static __attribute__((noinline)) void add_int8_tile(std::int64_t keys, std::int64_t value_dim, const float* weights,
                                                    const std::int8_t* const* value, const float* keep, float* output,
                                                    std::int64_t stride, Prefetch<std::int8_t>& prefetch) {
  // Four vectors of every query's sums, beside the values they are added from, where there are registers for them.
  constexpr int most_together = lanes == 16 ? 2 : 1;
  std::int32_t pairs[32 * tile_queries];
  float unit[tile_queries];
  quantize_weights(keys, weights, pairs, unit);
  std::int64_t column = 0;
  const auto add = [&]<int together>(auto load_two) BIGMODEL_INLINE_LAMBDA {
    prefetch.ask_for(column + together * pair_lanes, value_dim);
    add_int8_columns<queries, together>(keys, pairs, unit, value, column, load_two, keep, output, stride);
    column += together * pair_lanes;
  };
  const auto whole = [](const std::int8_t* a, const std::int8_t* b, I16& first, I16& second)
                         BIGMODEL_INLINE_LAMBDA { load_interleaved(a, b, first, second); };
  while (column + most_together * pair_lanes <= value_dim) add.template operator()<most_together>(whole);
  while (column + pair_lanes <= value_dim) add.template operator()<1>(whole);
  if (column == value_dim) return;
  const std::int64_t left = value_dim - column;
  add.template operator()<1>([&](const std::int8_t* a, const std::int8_t* b, I16& first, I16& second)
                                 BIGMODEL_INLINE_LAMBDA {
                                   std::int8_t buffer[2][pair_lanes] = {};
                                   for (std::int64_t i = 0; i < left; ++i) buffer[0][i] = a[i], buffer[1][i] = b[i];
                                   load_interleaved(buffer[0], buffer[1], first, second);
                                 });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
