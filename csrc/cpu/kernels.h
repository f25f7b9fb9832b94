// The kernels of one CPU target, as target.cpp collects them.
#pragma once

#include "cpu/kernel_table.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

std::int64_t attention_forward_workspace(const AttentionForwardArgs&);
void attention_forward(const AttentionForwardArgs&);
std::int64_t attention_backward_workspace(const AttentionBackwardArgs&);
void attention_backward(const AttentionBackwardArgs&);
std::int64_t attention_weights_forward_workspace(const AttentionWeightsForwardArgs&);
void attention_weights_forward(const AttentionWeightsForwardArgs&);
std::int64_t attention_with_weights_workspace(const AttentionWithWeightsArgs&);
void attention_with_weights(const AttentionWithWeightsArgs&);
std::int64_t attention_weights_backward_workspace(const AttentionWeightsBackwardArgs&);
void attention_weights_backward(const AttentionWeightsBackwardArgs&);

std::int64_t attention_varlen_forward_workspace(const AttentionVarlenForwardArgs&);
void attention_varlen_forward(const AttentionVarlenForwardArgs&);
std::int64_t attention_varlen_backward_workspace(const AttentionVarlenBackwardArgs&);
void attention_varlen_backward(const AttentionVarlenBackwardArgs&);

std::int64_t attention_decode_workspace(const AttentionDecodeArgs&);
void attention_decode(const AttentionDecodeArgs&);

std::int64_t linear_forward_workspace(const LinearForwardArgs&);
void linear_forward(const LinearForwardArgs&);
std::int64_t linear_backward_workspace(const LinearBackwardArgs&);
void linear_backward(const LinearBackwardArgs&);
std::int64_t linear_packed_bytes(const TensorView& weight);
std::int64_t linear_pack_workspace(const LinearPackArgs&);
void linear_pack(const LinearPackArgs&);
std::uint64_t fingerprint(const TensorView& matrix);

std::int64_t feed_forward_forward_workspace(const FeedForwardForwardArgs&);
void feed_forward_forward(const FeedForwardForwardArgs&);
std::int64_t feed_forward_backward_workspace(const FeedForwardBackwardArgs&);
void feed_forward_backward(const FeedForwardBackwardArgs&);

std::int64_t add_norm_forward_workspace(const AddNormForwardArgs&);
void add_norm_forward(const AddNormForwardArgs&);
std::int64_t add_norm_backward_workspace(const AddNormBackwardArgs&);
void add_norm_backward(const AddNormBackwardArgs&);

std::int64_t rotary_workspace(const RotaryArgs&);
void rotary(const RotaryArgs&);

std::int64_t linear_cross_entropy_forward_workspace(const LinearCrossEntropyForwardArgs&);
void linear_cross_entropy_forward(const LinearCrossEntropyForwardArgs&);
std::int64_t linear_cross_entropy_backward_workspace(const LinearCrossEntropyBackwardArgs&);
void linear_cross_entropy_backward(const LinearCrossEntropyBackwardArgs&);

// Not kernels but the ceilings that kernels are measured against, on the calling thread: independent fp32 multiply-adds
// (returns the floating-point operations done; 0 < factor < 1), dot products of bf16 pairs or int8 quadruples (return
// the operations done: 0 where the target has no such instruction), and a read of count words, from beyond the caches
// or not (returns their sum).
std::int64_t peak_multiply_add(std::int64_t rounds, float factor, float* sink);
std::int64_t peak_bf16_dot(std::int64_t rounds, float* sink);
std::int64_t peak_int8_dot(std::int64_t rounds, float* sink);
std::uint64_t peak_read(const std::uint64_t* data, std::int64_t count, bool far);

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
