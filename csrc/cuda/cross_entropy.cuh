// What linear_cross_entropy does with blocks of logits, and with the products of their gradient, as epilogues.
#pragma once

#include <cmath>

#include "bigmodel/linear_cross_entropy.h"
#include "cuda/epilogue.cuh"
#include "cuda/warp.cuh"

namespace bigmodel::cuda {

// The loss as kernels know it. first_column: of the vocabulary, in a pass over some of its columns.
struct LossRule {
  CrossEntropyOptions options;
  const std::int64_t* target;  // [rows]
  std::int64_t vocabulary, first_column;

  __device__ bool ignores(std::int64_t row) const { return target[row] == options.ignore_index; }
  // The host looks at no target on a device: a row with one outside the vocabulary gets NaN.
  __device__ bool knows(std::int64_t row) const { return target[row] >= 0 && target[row] < vocabulary; }
  // In a pass; not one of its columns where the target is in another.
  __device__ std::int64_t target_column(std::int64_t row) const { return target[row] - first_column; }
};

// x = softcap(x + bias), and softcap's derivative. Columns from `columns` on have no bias.
template <int N, class T>
__device__ inline void finish_logits(const LossRule& rule, const Rows<T>& bias, int column, int columns, float (&x)[N],
                                     float (&slope)[N]) {
  const float cap = rule.options.softcap;
  for_each_of<N>([&](int i) {
    if (bias.data && column + i < columns) x[i] += to_float(bias.data[(column + i) * bias.stride]);
    slope[i] = 1.0f;
    if (cap > 0.0f) {
      const float t = tanhf(x[i] / cap);
      x[i] = cap * t;
      slope[i] = fmaf(-t, t, 1.0f);
    }
  });
}

// What is known of some of a row's logits: exp(x - maximum) summed, and x summed.
struct PartOfRow {
  float maximum, sum, total;

  // What is subtracted: 0 of a part without a number above -inf, so that -inf - -inf does not happen.
  __device__ static float shift(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }
};

// Columns of a part: what a warp holds of a row, whatever the shape of its tile.
inline constexpr int part_columns = 32;

// Reduces part_columns logits of a row, which neighbouring lanes hold, to a part. All lanes of a warp call it, past the
// last row and column too.
template <class T>
struct PartEpilogue {
  static constexpr bool reduces_rows = true;

  Rows<T> bias;
  LossRule rule{};
  PartOfRow* parts = nullptr;     // [rows, parts_of_row]
  float* target_logit = nullptr;  // [rows]
  std::int64_t rows = 0;
  int parts_of_row = 0;
  int columns = 0;
  bool packed = true;

  template <int N>
  __device__ void operator()(std::int64_t row, int column, float (&x)[N]) const {
    constexpr int lanes = part_columns / N;
    float slope[N];
    finish_logits(rule, bias, column, columns, x, slope);
    float maximum = -INFINITY, sum = 0.0f, total = 0.0f;
    for_each_of<N>([&](int i) {
      if (column + i < columns) maximum = fmaxf(maximum, x[i]), total += x[i];
    });
    maximum = group_max<lanes>(maximum);
    const float shift = PartOfRow::shift(maximum);
    for_each_of<N>([&](int i) {
      if (column + i < columns) sum += expf(x[i] - shift);
    });
    sum = group_sum<lanes>(sum);
    total = group_sum<lanes>(total);
    if (row >= rows) return;
    const std::int64_t target = rule.target_column(row);
    for_each_of<N>([&](int i) {
      if (column + i == target && column + i < columns) target_logit[row] = x[i];
    });
    if (column % part_columns == 0 && column < columns) {
      parts[row * parts_of_row + column / part_columns] = {maximum, sum, total};
    }
  }
};

// The gradient of the logits before softcap, times `scale` where there is one.
template <class T>
struct LogitsGradientEpilogue {
  Rows<T> bias, gradient;
  LossRule rule{};
  const float *lse = nullptr, *grad_loss = nullptr;  // [rows]
  const float* scale = nullptr;
  int columns = 0;
  bool packed = false;

  template <int N>
  __device__ void operator()(std::int64_t row, int column, float (&x)[N]) const {
    const CrossEntropyOptions& options = rule.options;
    float slope[N];
    finish_logits(rule, bias, column, columns, x, slope);
    const bool ignored = rule.ignores(row);
    const float factor = rule.knows(row) ? grad_loss[row] * (scale ? *scale : 1.0f) : NAN;
    const float weight = 1.0f + 2.0f * options.z_loss * lse[row];
    const float smoothing = options.label_smoothing / static_cast<float>(rule.vocabulary);
    const std::int64_t target = rule.target_column(row);
    for_each_of<N>([&](int i) {
      float g = fmaf(expf(x[i] - lse[row]), weight, -smoothing);
      if (column + i == target) g -= 1.0f - options.label_smoothing;
      x[i] = ignored ? 0.0f : g * slope[i] * factor;
    });
    store(gradient, row, column, x);
  }
};

// output = (product + so_far) / scale, or sums = product + so_far where there is no output yet. so_far may be the sums.
template <class T>
struct SumEpilogue {
  Rows<float> so_far, sums;
  Rows<T> output;
  const float* scale = nullptr;  // a power of two: to divide is exact
  int columns = 0;
  bool packed = false;

  template <int N>
  __device__ void operator()(std::int64_t row, int column, float (&x)[N]) const {
    if (so_far.data) {
      float before[N];
      load(so_far, row, column, before);
      for_each_of<N>([&](int i) { x[i] += before[i]; });
    }
    if (!output.data) return store(sums, row, column, x);
    if (scale) for_each_of<N>([&](int i) { x[i] /= *scale; });
    store(output, row, column, x);
  }
};

}  // namespace bigmodel::cuda
