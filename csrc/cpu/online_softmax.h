// Softmax over keys that arrive in tiles (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018),
// with the lanes along the queries: maxima and sums run down the rows of a tile, and nothing is reduced across lanes.
//
// A tile holds keys x queries with rows of tile_columns. Scores come in units of 1 / factor powers of two: the weight
// of a score s is 2^(factor * (s - maximum)). The maximum is only a reference point, so it may lag behind the true
// maximum: it follows when a score exceeds it by more than a factor of 2^8, and then the output so far is rescaled.
#pragma once

#include "cpu/isa/pack.h"
#include "cpu/isa/vec_math.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// The lowest finite number rather than -infinity, so that the difference of a removed score (-infinity) to it is still
// -infinity, and a row of the lowest finite scores is a row of equal weights.
inline constexpr float lowest_maximum = -__FLT_MAX__;

// What is known of a panel's queries after some keys.
struct SoftmaxState {
  float maximum[tile_columns];
  float sum[tile_columns];
};

BIGMODEL_INLINE bool any(Mask mask) { return reduce_max(select(mask, set1(1.0f), zero())) > 0; }

BIGMODEL_INLINE void start_softmax(SoftmaxState& state) {
  for (int column = 0; column < tile_columns; column += lanes) {
    store(state.maximum + column, set1(lowest_maximum));
    store(state.sum + column, zero());
  }
}

// Maximum of one vector of columns. Four chains, because one would wait for the latency of max. A NaN may be lost here:
// it comes back as the NaN of its own weight.
BIGMODEL_INLINE F32 tile_maximum(std::int64_t keys, const float* scores) {
  F32 chains[4] = {set1(-infinity), set1(-infinity), set1(-infinity), set1(-infinity)};
  std::int64_t key = 0;
  for (; key + 4 <= keys; key += 4) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) chains[c] = max(chains[c], load(scores + (key + c) * tile_columns));
  }
  for (; key < keys; ++key) chains[0] = max(chains[0], load(scores + key * tile_columns));
  return max(max(chains[0], chains[1]), max(chains[2], chains[3]));
}

// Scores to weights in place; returns their sum.
BIGMODEL_INLINE F32 tile_weights(std::int64_t keys, F32 factor, F32 maximum, float* scores) {
  F32 sum = zero();
  for (std::int64_t key = 0; key < keys; ++key) {
    const F32 weight = exp2(factor * (load(scores + key * tile_columns) - maximum));
    store(scores + key * tile_columns, weight);
    sum = sum + weight;
  }
  return sum;
}

// Takes in a tile of `keys` scores for `queries` queries and leaves their weights in its place. Returns whether the
// output so far must be multiplied by rescale[query].
static __attribute__((noinline)) bool update_softmax(std::int64_t keys, std::int64_t queries, float factor,
                                                     float* scores, SoftmaxState& state, float* rescale) {
  const F32 slack = set1(factor > 0 ? 8.0f / factor : infinity);
  bool rescaled = false;
  for (std::int64_t column = 0; column < queries; column += lanes) {
    const F32 old_maximum = load(state.maximum + column);
    const F32 new_maximum = tile_maximum(keys, scores + column);
    const Mask grows = less(old_maximum + slack, new_maximum);
    const F32 maximum = select(grows, new_maximum, old_maximum);
    F32 sum = load(state.sum + column);
    if (any(grows)) {
      const F32 shrink = exp2(set1(factor) * (old_maximum - maximum));
      store(state.maximum + column, maximum);
      store(rescale + column, shrink);
      sum = sum * shrink;
      rescaled = true;
    } else {
      store(rescale + column, set1(1.0f));
    }
    store(state.sum + column, sum + tile_weights(keys, set1(factor), maximum, scores + column));
  }
  return rescaled;
}

// output [rows x queries] *= factors[query]
static __attribute__((noinline)) void scale_columns(std::int64_t rows, std::int64_t queries, const float* factors,
                                                    float* output) {
  for (std::int64_t column = 0; column < queries; column += lanes) {
    const F32 f = load(factors + column);
    for (std::int64_t row = 0; row < rows; ++row) {
      store(output + row * tile_columns + column, load(output + row * tile_columns + column) * f);
    }
  }
}

// Ends the softmax of one vector of queries: their log-sum-exp, with a sink's logit (-infinity: none) in it, and the
// factor that turns the weighted sum of values into their mean. No weight at all gives 0, not 0 / 0.
struct SoftmaxEnd {
  F32 lse, normalizer;
};
BIGMODEL_INLINE SoftmaxEnd end_softmax(F32 maximum, F32 sum, float factor, F32 sink) {
  const F32 logit = max(set1(lowest_maximum), maximum * set1(factor * ln_2));
  const F32 reference = max(sink, logit);
  const F32 shrink = exp2((logit - reference) * set1(log2_e));
  const F32 total = fma(sum, shrink, exp2((sink - reference) * set1(log2_e)));
  const F32 normalizer = select(less(total, set1(__FLT_MIN__)), zero(), shrink / total);
  return {reference + log(total), normalizer};
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
