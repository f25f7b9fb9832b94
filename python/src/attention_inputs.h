// What attention and attention_weights, forward and backward, check alike: query, key, value, mask, biases and options.
#pragma once

#include <optional>
#include <string>

#include "bigmodel/attention.h"
#include "call.h"

namespace bigmodel::binding {

struct AttentionShape {
  std::int64_t batch = 0, heads = 0, kv_heads = 0, q_len = 0, kv_len = 0, head_dim = 0, value_dim = 0;

  bool has_queries() const { return batch > 0 && heads > 0 && q_len > 0; }
};

struct AttentionTensors {
  const Tensor& query;
  const Tensor& key;
  const Tensor* value;  // null for attention_weights
  const OptionalTensor& mask;
  const OptionalTensor& alibi_slopes;
  const OptionalTensor* sinks;  // null for attention_weights
  const OptionalTensor& dropout_seed;
};

// The ops' keyword arguments, as the schemas name them.
struct AttentionKeywords {
  const std::string& causal;
  std::optional<double> scale;
  std::int64_t window_left, window_right;
  double softcap, dropout_p;
};

// Everything checked and viewed: the mask and the slopes already broadcast.
struct CheckedAttention {
  AttentionShape shape;
  AttentionInputs inputs;
};

CheckedAttention check_attention(const Call& call, const AttentionTensors& tensors, const AttentionKeywords& keywords);

// All of it but query, key and value, whose views and shape are in `checked` already.
void check_score_rules(const Call& call, const AttentionTensors& tensors, const AttentionKeywords& keywords,
                       CheckedAttention& checked);

// A fresh [batch, heads, length, features] tensor in the order of `like`; see attention.cpp for the rule.
Tensor empty_like_order(const Call& call, const TensorView& like, std::int64_t features);

// The gradient of an additive mask: shaped as the mask itself. Does not exist for a boolean mask.
bool mask_has_gradient(const OptionalTensor& mask, const AttentionInputs& inputs);

}  // namespace bigmodel::binding
