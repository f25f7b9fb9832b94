// The functions of ops, and of self-attention, that a whole layer is made of; each checks what it is given.
#pragma once

#include <string>
#include <tuple>

#include "call.h"

namespace bigmodel::binding {

// self_attention.cpp
Tensor self_attention(const Tensor& input, const Tensor& in_weight, const OptionalTensor& in_bias,
                      const Tensor& out_weight, const OptionalTensor& out_bias, const OptionalTensor& residual,
                      std::int64_t heads);

// feed_forward.cpp
std::tuple<Tensor, Tensor, Tensor> feed_forward(const Tensor& input, const Tensor& w1, const OptionalTensor& b1,
                                                const Tensor& w2, const OptionalTensor& b2,
                                                const OptionalTensor& w_gate, const OptionalTensor& b_gate,
                                                const OptionalTensor& residual, const OptionalTensor& packed_w1,
                                                const OptionalTensor& packed_w2, const OptionalTensor& packed_w_gate,
                                                const OptionalTensor& dropout_seed, const std::string& activation,
                                                const std::string& gate, double dropout_p, bool save_preactivation);

// add_norm.cpp
std::tuple<Tensor, Tensor, Tensor, Tensor> add_norm(const Tensor& input, const OptionalTensor& residual,
                                                    const OptionalTensor& weight, const OptionalTensor& bias,
                                                    const std::string& kind, double eps);

}  // namespace bigmodel::binding
