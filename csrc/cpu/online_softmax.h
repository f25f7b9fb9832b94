// Softmax over keys that arrive in tiles (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018),
// with the lanes along the queries: maxima and sums run down the rows of a tile, and nothing is reduced across lanes.
//
// A tile holds keys x queries with rows of tile_columns. The maximum is only a reference point, so it may lag behind
// the true maximum: it follows when a weight exceeds 2^8, and then the output so far is rescaled.
#pragma once

#include "cpu/isa/pack.h"
#include "cpu/isa/vec_math.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// The weight of a score s is 2^(factor * s - maximum), one multiply-add; or, where scores come near the lowest finite
// number (an additive mask's), 2^(factor * (s - maximum)), which cannot overflow.
struct ScoreUnit {
  float factor;
  bool wide;

  float maxima_factor() const { return wide ? 1.0f : factor; }     // from scores to maxima
  float maxima_in_powers() const { return wide ? factor : 1.0f; }  // from maxima to powers of two
};

// Where maxima start. Finite, so that the difference of a removed score (-infinity) to it is still -infinity.
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

template <bool wide>
BIGMODEL_INLINE F32 exponent(F32 score, F32 factor, F32 maximum) {
  return wide ? factor * (score - maximum) : fma(score, factor, zero() - maximum);
}

// The degree of the polynomial of weights for outputs of type T: no better than their rounding asks for.
template <class T>
inline constexpr int weight_degree = 4;
template <>
inline constexpr int weight_degree<float> = 5;

// Scores to weights in place; returns their sum. Two vectors at a time: 2.3 ns each on Zen 3, 2.6 one by one.
template <int degree, bool wide>
BIGMODEL_INLINE F32 tile_weights(std::int64_t keys, F32 factor, F32 maximum, float* scores) {
  F32 sum = zero();
  std::int64_t key = 0;
  for (; key + 2 <= keys; key += 2, scores += 2 * tile_columns) {
    F32 weights[2] = {exponent<wide>(load(scores), factor, maximum),
                      exponent<wide>(load(scores + tile_columns), factor, maximum)};
    exp2_each<degree>(weights);
    store(scores, weights[0]);
    store(scores + tile_columns, weights[1]);
    sum = sum + weights[0] + weights[1];
  }
  if (key < keys) {
    F32 weight[1] = {exponent<wide>(load(scores), factor, maximum)};
    exp2_each<degree>(weight);
    store(scores, weight[0]);
    sum = sum + weight[0];
  }
  return sum;
}

// Takes in a tile of `keys` scores for `queries` queries and leaves their weights in its place. Returns whether the
// output so far must be multiplied by rescale[query].
template <int degree>
static __attribute__((noinline)) bool update_softmax(std::int64_t keys, std::int64_t queries, const ScoreUnit& unit,
                                                     float* scores, SoftmaxState& state, float* rescale) {
  const F32 factor = set1(unit.factor), in_powers = set1(unit.maxima_in_powers());
  const F32 slack = set1(8.0f / unit.maxima_in_powers());
  bool rescaled = false;
  for (std::int64_t column = 0; column < queries; column += lanes) {
    const F32 old_maximum = load(state.maximum + column);
    const F32 new_maximum = tile_maximum(keys, scores + column) * set1(unit.maxima_factor());
    const Mask grows = less(old_maximum + slack, new_maximum);
    const F32 maximum = select(grows, new_maximum, old_maximum);
    const bool any_grows = any(grows);
    const F32 shrink = any_grows ? exp2(in_powers * (old_maximum - maximum)) : set1(1.0f);
    store(state.maximum + column, maximum);
    store(rescale + column, shrink);
    const F32 sum = unit.wide ? tile_weights<degree, true>(keys, factor, maximum, scores + column)
                              : tile_weights<degree, false>(keys, factor, maximum, scores + column);
    store(state.sum + column, fma(load(state.sum + column), shrink, sum));
    rescaled |= any_grows;
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
BIGMODEL_INLINE SoftmaxEnd end_softmax(F32 maximum, F32 sum, const ScoreUnit& unit, F32 sink) {
  const F32 logit = maximum * set1(unit.wide ? 1.0f : ln_2);
  const F32 reference = max(sink, logit);
  const F32 shrink = exp2((logit - reference) * set1(log2_e));
  const F32 total = fma(sum, shrink, exp2((sink - reference) * set1(log2_e)));
  const F32 normalizer = select(less(total, set1(__FLT_MIN__)), zero(), shrink / total);
  return {reference + log(total), normalizer};
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
