// Scaled dot-product attention: contracts shared by every backend.
//
// The score of query i and key j, in fp32, is built in this order:
//   s = scale * dot(query[i], key[j]);  softcap: s = c * tanh(s / c);  ALiBi: s -= slope[head] * |d(i) - j|;
//   additive mask: s += mask[i, j];  removed (-inf) where causal, window or boolean mask say so.
// d(i) = i for Causal::top_left, else i + kv_len - q_len. Causal keeps j <= d(i); a window keeps
// d(i) - window_left <= j <= d(i) + window_right. A boolean mask keeps where true.
// lse[i] = log(sum_j exp(s) + exp(sink[head])) (natural log); output[i] = sum_j exp(s - lse[i]) dropout value[j].
// A query that keeps no key gives output 0, lse -inf (or the sink's logit) and zero gradients.
//
// Shapes: query [batch, heads, q_len, head_dim]; key [batch, kv_heads, kv_len, head_dim]; value [batch, kv_heads,
// kv_len, value_dim]; heads is a multiple of kv_heads and query head h reads kv head h / (heads / kv_heads). Strides
// are arbitrary, zero included, for inputs. query, key, value, output and their gradients share one dtype (fp32, bf16
// or fp16); lse, alibi_slopes, sinks and their gradients are fp32.
#pragma once

#include <cstdint>

#include "bigmodel/philox.h"
#include "bigmodel/tensor.h"

namespace bigmodel {

enum class Causal : std::int32_t { none, top_left, bottom_right };

struct AttentionOptions {
  Causal causal = Causal::none;
  float scale = 1.0f;
  std::int64_t window_left = -1;   // -1: unbounded
  std::int64_t window_right = -1;  // -1: unbounded
  float softcap = 0.0f;            // 0: off
  Dropout dropout;
};

// What the forward pass and every pass that recomputes its probabilities read.
struct AttentionInputs {
  TensorView query, key, value;  // attention_weights leaves value absent
  TensorView mask;               // [batch, heads, q_len, kv_len] after broadcasting; boolean, fp32 or the query's dtype
  TensorView alibi_slopes;       // [batch, heads] after broadcasting
  TensorView sinks;              // [heads]
  // [sequences + 1], int32 or int64, of packed sequences (attention_varlen.h) in device memory, for kernels there.
  TensorView query_starts, key_starts;
  AttentionOptions options;
};

struct AttentionForwardArgs {
  AttentionInputs inputs;
  TensorView output;  // [batch, heads, q_len, value_dim], last stride 1
  TensorView lse;     // [batch, heads, q_len], contiguous
  void* workspace = nullptr;
};

// Gradients that are absent (data == nullptr) are not computed. Every gradient is written, never accumulated into.
struct AttentionBackwardArgs {
  AttentionInputs inputs;
  TensorView output, lse;                       // of the forward pass
  TensorView grad_output, grad_lse;             // any strides; either may be absent
  TensorView grad_query, grad_key, grad_value;  // last stride 1
  TensorView grad_mask;   // as inputs.mask before broadcasting: a broadcast dimension has size 1; contiguous
  TensorView grad_sinks;  // [heads], contiguous
  void* workspace = nullptr;
};

// weights[i, j] = exp(s - lse[i]) with dropout, or its mean over the heads, which is never formed per head in memory.
struct AttentionWeightsForwardArgs {
  AttentionInputs inputs;
  TensorView lse;      // [batch, heads, q_len], any strides
  TensorView weights;  // [batch, heads (1 when averaging), q_len, kv_len], contiguous, the query's dtype
  bool average_heads = false;
  void* workspace = nullptr;
};

// attention and attention_weights of the same inputs at once, so that query and key are multiplied only once.
struct AttentionWithWeightsArgs {
  AttentionInputs inputs;
  TensorView output, lse;  // as in AttentionForwardArgs
  TensorView weights;      // as in AttentionWeightsForwardArgs
  bool average_heads = false;
  void* workspace = nullptr;
};

struct AttentionWeightsBackwardArgs {
  AttentionInputs inputs;
  TensorView lse;
  TensorView grad_weights;          // as weights, any strides
  TensorView grad_query, grad_key;  // last stride 1
  TensorView grad_lse;              // [batch, heads, q_len], contiguous
  TensorView grad_mask;             // as in AttentionBackwardArgs
  bool average_heads = false;
  void* workspace = nullptr;
};

}  // namespace bigmodel
