// Rows of logits as linear_cross_entropy.cpp works on them, while they are in cache.
#pragma once

#include "bigmodel/linear_cross_entropy.h"
#include "cpu/epilogue.h"
#include "cpu/isa/loops.h"
#include "cpu/isa/vec_math.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

BIGMODEL_INLINE float first_lane(F32 a) {
  float values[lanes];
  store(values, a);
  return values[0];
}

// row = softcap(row + bias); with `slope` also the derivative of softcap.
static void finish_logits(const CrossEntropyOptions& options, const float* bias, float* row, float* slope,
                          std::int64_t count) {
  if (bias) add_row(row, bias, count);
  if (options.softcap <= 0) return;
  const F32 cap = set1(options.softcap), inverse = set1(1.0f / options.softcap);
  for (std::int64_t j = 0; j < count; j += lanes) {
    const F32 t = tanh(load(row + j) * inverse);
    store(row + j, cap * t);
    if (slope) store(slope + j, fnma(t, t, set1(1.0f)));
  }
}

// What is known of some of a row's logits: exp(x - maximum) summed, and x summed.
struct PartOfRow {
  float maximum, sum, total;
};

// What lies past the row's end, up to a whole vector, is overwritten.
static PartOfRow summarise(float* row, std::int64_t count, bool wants_total) {
  constexpr int chains = 4;
  const std::int64_t whole = round_up(count, lanes);
  F32 maxima[chains], sums[chains] = {}, totals[chains] = {};
  if (wants_total) {
    over_vectors<chains>(count, [&](std::int64_t j, auto part, int chain)
                                    BIGMODEL_INLINE_LAMBDA { totals[chain] = totals[chain] + part.read(row + j); });
  }
  for (std::int64_t j = count; j < whole; ++j) row[j] = -infinity;
  for (F32& each : maxima) each = set1(-infinity);
  over_vectors<chains>(whole, [&](std::int64_t j, auto part, int chain)
                                  BIGMODEL_INLINE_LAMBDA { maxima[chain] = max(maxima[chain], part.read(row + j)); });
  const float maximum = reduce_max(max(max(maxima[0], maxima[1]), max(maxima[2], maxima[3])));
  if (maximum == -infinity) return {maximum, 0, reduce_add(totals)};
  const F32 factor = set1(log2_e), reference = set1(maximum);
  over_vectors<chains>(whole, [&](std::int64_t j, auto part, int chain) BIGMODEL_INLINE_LAMBDA {
    sums[chain] = sums[chain] + exp2((part.read(row + j) - reference) * factor);
  });
  return {maximum, reduce_add(sums), reduce_add(totals)};
}

// Of both together.
static PartOfRow merged(const PartOfRow& a, const PartOfRow& b) {
  if (a.maximum == -infinity) return {b.maximum, b.sum, a.total + b.total};
  if (b.maximum == -infinity) return {a.maximum, a.sum, a.total + b.total};
  const float maximum = a.maximum > b.maximum ? a.maximum : b.maximum;
  const float of_a = first_lane(exp(set1(a.maximum - maximum))), of_b = first_lane(exp(set1(b.maximum - maximum)));
  return {maximum, a.sum * of_a + b.sum * of_b, a.total + b.total};
}

// The gradient of a row's loss by its logits before softcap, times `factor`, in place of the logits. target: the
// target's column, if it is one of these. slope: softcap's, or nullptr.
struct RowGradient {
  float lse, factor;
  std::int64_t target, vocabulary;
};

static void differentiate(const CrossEntropyOptions& options, const RowGradient& gradient, const float* slope,
                          float* row, std::int64_t count) {
  const F32 factor = set1(log2_e), lse = set1(gradient.lse);
  const F32 weight = set1(1.0f + 2.0f * options.z_loss * gradient.lse);
  const F32 smoothing = set1(options.label_smoothing / static_cast<float>(gradient.vocabulary));
  for (std::int64_t j = 0; j < count; j += lanes) {
    const F32 probability = exp2((load(row + j) - lse) * factor);
    store(row + j, fma(probability, weight, zero() - smoothing));
  }
  if (gradient.target >= 0 && gradient.target < count) row[gradient.target] -= 1.0f - options.label_smoothing;
  if (slope) multiply_row(row, slope, count);
  for (std::int64_t j = 0; j < count; j += lanes) store(row + j, load(row + j) * set1(gradient.factor));
}

BIGMODEL_INLINE void scale_row(float* row, float factor, std::int64_t count) {
  for (std::int64_t j = 0; j < count; j += lanes) store(row + j, load(row + j) * set1(factor));
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
