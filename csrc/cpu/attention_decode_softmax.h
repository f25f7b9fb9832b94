// The online softmax of a tile of decoding: lanes run over keys and the tile's queries, [key][tile_queries], so that
// one query alone costs as much as four.
#pragma once

#include "cpu/attention_decode_products.h"
#include "cpu/isa/vec_math.h"
#include "cpu/online_softmax.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

static_assert(lanes % tile_queries == 0, "a vector holds whole keys");
inline constexpr int vector_keys = lanes / tile_queries;

// From a dot product to an exponent of two, in which maxima and weights are kept: factor * dot, or
// bound * tanh(factor * dot) with a softcap.
struct DecodeRule {
  float factor, bound;  // bound 0: no softcap
};

BIGMODEL_INLINE DecodeRule decode_rule(float scale, float softcap) {
  if (softcap > 0) return {scale / softcap, softcap * log2_e};
  return {scale * log2_e, 0};
}

// Dots to exponents, of int8 caches with their keys' scales ([key][tile_queries], absent for others), filled up with
// -infinity to whole vectors. unit[query]: what the dots are multiples of.
static __attribute__((noinline)) void exponents_of(const DecodeRule& rule, std::int64_t keys, const float* unit,
                                                   const float* scales, float* scores) {
  float factors[lanes];
  for (int i = 0; i < lanes; ++i) factors[i] = rule.factor * unit[i % tile_queries];
  const F32 factor = load(factors), bound = set1(rule.bound);
  for (std::int64_t i = 0; i < keys * tile_queries; i += lanes) {
    F32 x = load(scores + i) * factor;
    if (scales) x = x * load(scales + i);
    store(scores + i, rule.bound > 0 ? bound * tanh(x) : x);
  }
  for (std::int64_t i = keys * tile_queries; i % lanes != 0; ++i) scores[i] = -infinity;
}

// Takes in the exponents of `keys` keys and leaves the weights in their place, times the values' scales where there are
// any. keep[query] is what the output so far must be multiplied by. maximum and sum: of the tile's queries.
static __attribute__((noinline)) void weigh_keys(std::int64_t keys, const float* value_scales, float* scores,
                                                 float* maximum, float* sum, float* keep) {
  constexpr int most = 4;
  const std::int64_t count = round_up(keys * tile_queries, lanes);
  F32 largest = set1(-infinity);
  for (std::int64_t i = 0; i < count; i += lanes) largest = max(largest, load(scores + i));
  float each[lanes], reference[lanes];
  store(each, largest);
  for (int q = 0; q < tile_queries; ++q) {
    float m = each[q];
    for (int k = 1; k < vector_keys; ++k) m = each[k * tile_queries + q] > m ? each[k * tile_queries + q] : m;
    each[q] = m > maximum[q] + 8.0f ? m : maximum[q];  // the maximum may lag: see online_softmax.h
  }
  for (int i = 0; i < lanes; ++i) reference[i] = each[i % tile_queries];
  float shrink[lanes] = {};
  for (int q = 0; q < tile_queries; ++q) shrink[q] = maximum[q] - each[q], maximum[q] = each[q];
  store(shrink, exp2(load(shrink)));
  const F32 top = load(reference);
  F32 total = zero();
  std::int64_t i = 0;
  const auto weigh = [&]<int vectors>(Queries<vectors>) BIGMODEL_INLINE_LAMBDA {
    F32 x[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) x[v] = load(scores + i + v * lanes) - top;
    exp2_each<5>(x);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      total = total + x[v];
      store(scores + i + v * lanes, value_scales ? x[v] * load(value_scales + i + v * lanes) : x[v]);
    }
  };
  for (; i + most * lanes <= count; i += most * lanes) weigh(Queries<most>{});
  for (; i < count; i += lanes) weigh(Queries<1>{});
  store(each, total);
  for (int q = 0; q < tile_queries; ++q) {
    float s = each[q];
    for (int k = 1; k < vector_keys; ++k) s += each[k * tile_queries + q];
    keep[q] = shrink[q];
    sum[q] = sum[q] * shrink[q] + s;
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
