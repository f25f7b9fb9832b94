// One score at a time, for the kernels without tensor cores and for what no loop depends on.
#pragma once

#include <cmath>

#include "cuda/attention_inputs.cuh"

namespace bigmodel::cuda {

struct PlainScore {
  float score;  // in natural units; -inf where removed
  float slope;  // d score / d (scale * product): 1 without softcap
};

// The score of query and key, both within their lengths, from their product.
template <class T>
__device__ inline PlainScore plain_score(const AttentionTensors<T>& p, float product, int b, int h, int query,
                                         int key) {
  const ScoreRules& rules = p.rules;
  if (key < p.band.first_key(query) || key >= p.band.end_key(query)) return {-INFINITY, 0.0f};
  PlainScore result{product * rules.scale, 1.0f};
  if (rules.softcap > 0) {
    const float t = tanhf(result.score / rules.softcap);
    result = {rules.softcap * t, 1.0f - t * t};
  }
  if (rules.slopes) {
    result.score -= rules.slope(b, h) * fabsf(static_cast<float>(query + p.band.offset - key));
  }
  const std::int64_t at = rules.mask_row(b, h, query) + key * rules.mask_key;
  if (rules.mask_kind == ScoreRules::Mask::boolean) {
    if (!static_cast<const std::uint8_t*>(rules.mask)[at]) result.score = -INFINITY;
  } else if (rules.mask_kind == ScoreRules::Mask::wide) {
    result.score += static_cast<const float*>(rules.mask)[at];
  } else if (rules.mask_kind == ScoreRules::Mask::own) {
    result.score += to_float(static_cast<const T*>(rules.mask)[at]);
  }
  return result;
}

}  // namespace bigmodel::cuda
