// What a whole layer is made of; each part checks what it is given.
#pragma once

#include <string>
#include <tuple>

#include "call.h"

namespace bigmodel::binding {

// self_attention.cpp: nothing where it might want packed weights.
OptionalTensor self_attention(const Tensor& input, const Tensor& in_weight, const OptionalTensor& in_bias,
                              const Tensor& out_weight, const OptionalTensor& out_bias, const OptionalTensor& residual,
                              std::int64_t heads);

// feed_forward.cpp: without gate and dropout; nothing where it might want packed weights.
OptionalTensor small_feed_forward(const Tensor& input, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
                                  const OptionalTensor& b2, const OptionalTensor& residual,
                                  const std::string& activation);

// add_norm.cpp: LayerNorm without a residual.
Tensor norm(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias, double eps);

}  // namespace bigmodel::binding
