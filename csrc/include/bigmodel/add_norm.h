// sum = input + residual;  normed = normalise(sum) * weight + bias, over the last dimension.
//   NormKind::layer: (sum - mean) / sqrt(variance + eps)   (Ba et al., 2016; variance is the biased one)
//   NormKind::rms:   sum / sqrt(mean(sum^2) + eps)         (Zhang and Sennrich, 2019)
//
// Shapes: input, residual, sum, normed [rows, width]; weight, bias [width]; mean, rstd [rows] in fp32. input, residual,
// sum and normed share one dtype; weight and bias share it or are fp32. Statistics are taken in fp32 of the sum as it
// is stored: that is the sum which the backward pass reads, and in a row of nearly equal elements its rounding is all
// there is. Inputs have any strides; outputs are contiguous.
#pragma once

#include <cstdint>

#include "bigmodel/tensor.h"

namespace bigmodel {

enum class NormKind : std::int32_t { layer, rms };

struct AddNormForwardArgs {
  TensorView input, residual, weight, bias;  // all but input optional
  NormKind kind = NormKind::layer;
  float eps = 1e-5f;
  TensorView sum;  // present exactly when residual is
  TensorView normed;
  TensorView mean;  // absent for rms
  TensorView rstd;  // both may be absent on the CPU, for those who want no gradient
};

struct AddNormBackwardArgs {
  TensorView grad_normed, grad_sum;  // grad_sum optional; any strides; never written
  TensorView sum, weight;            // sum is the input when there was no residual
  TensorView mean, rstd;
  NormKind kind = NormKind::layer;
  TensorView grad_input;              // equals grad_residual; absent: not computed
  TensorView grad_weight, grad_bias;  // absent: not computed
  void* workspace = nullptr;
};

}  // namespace bigmodel
