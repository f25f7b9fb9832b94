// The cross-entropy of a linear layer's logits, which never are in memory all at once.
//   x = softcap(hidden weight^T + bias), softcap(s) = softcap * tanh(s / softcap), or s where softcap is 0
//   lse = log(sum over the vocabulary of exp(x))
//   loss = lse - (1 - label_smoothing) x[target] - label_smoothing mean(x) + z_loss lse^2, or 0 where target is
//   ignore_index
//
// Shapes: hidden [rows, width]; weight [vocabulary, width]; bias [vocabulary]; target [rows]; loss, lse and grad_loss
// [rows] in fp32. hidden, weight and bias share one dtype (fp32, bf16 or fp16); sums are fp32. Inputs have any strides;
// outputs are contiguous. Targets are in the vocabulary or equal to ignore_index; there is at least one row.
#pragma once

#include <cstdint>

#include "bigmodel/tensor.h"

namespace bigmodel {

struct CrossEntropyOptions {
  std::int64_t ignore_index = -100;
  float label_smoothing = 0, z_loss = 0, softcap = 0;
};

struct LinearCrossEntropyForwardArgs {
  TensorView hidden, weight, bias;
  const std::int64_t* target = nullptr;
  CrossEntropyOptions options;
  float *loss = nullptr, *lse = nullptr;
  void* workspace = nullptr;
};

// Gradients that are absent are not computed.
struct LinearCrossEntropyBackwardArgs {
  TensorView grad_loss;  // any stride; never written
  TensorView hidden, weight, bias;
  const std::int64_t* target = nullptr;
  const float* lse = nullptr;
  CrossEntropyOptions options;
  TensorView grad_hidden, grad_weight, grad_bias;
  void* workspace = nullptr;
};

}  // namespace bigmodel
