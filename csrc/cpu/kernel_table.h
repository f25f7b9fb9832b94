// One table of function pointers per CPU target: all that the rest of the library sees of a target.
//
// `*_workspace` gives the bytes that the kernel wants at args.workspace (64-byte aligned) with max_workers() threads;
// it reads everything of args but data pointers' contents.
#pragma once

#include <cstdint>

#include "bigmodel/add_norm.h"
#include "bigmodel/attention.h"
#include "bigmodel/attention_decode.h"
#include "bigmodel/attention_varlen.h"
#include "bigmodel/feed_forward.h"
#include "bigmodel/linear.h"
#include "bigmodel/linear_cross_entropy.h"
#include "bigmodel/rotary.h"

namespace bigmodel::cpu {

template <class Args>
struct Kernel {
  std::int64_t (*workspace)(const Args&);
  void (*run)(const Args&);
};

struct KernelTable {
  const char* target;
  Kernel<AttentionForwardArgs> attention_forward;
  Kernel<AttentionBackwardArgs> attention_backward;
  Kernel<AttentionWeightsForwardArgs> attention_weights_forward;
  Kernel<AttentionWithWeightsArgs> attention_with_weights;
  Kernel<AttentionWeightsBackwardArgs> attention_weights_backward;
  Kernel<AttentionVarlenForwardArgs> attention_varlen_forward;
  Kernel<AttentionVarlenBackwardArgs> attention_varlen_backward;
  Kernel<AttentionDecodeArgs> attention_decode;
  Kernel<LinearForwardArgs> linear_forward;
  Kernel<LinearBackwardArgs> linear_backward;
  std::int64_t (*linear_packed_bytes)(const TensorView& weight);
  Kernel<LinearPackArgs> linear_pack;
  std::uint64_t (*fingerprint)(const TensorView& matrix);
  Kernel<FeedForwardForwardArgs> feed_forward_forward;
  Kernel<FeedForwardBackwardArgs> feed_forward_backward;
  Kernel<AddNormForwardArgs> add_norm_forward;
  Kernel<AddNormBackwardArgs> add_norm_backward;
  Kernel<RotaryArgs> rotary;
  Kernel<LinearCrossEntropyForwardArgs> linear_cross_entropy_forward;
  Kernel<LinearCrossEntropyBackwardArgs> linear_cross_entropy_backward;
  std::int64_t (*peak_multiply_add)(std::int64_t rounds, float factor, float* sink);
  std::int64_t (*peak_bf16_dot)(std::int64_t rounds, float* sink);
  std::int64_t (*peak_int8_dot)(std::int64_t rounds, float* sink);
  std::uint64_t (*peak_read)(const std::uint64_t* data, std::int64_t count, bool far);
};

}  // namespace bigmodel::cpu
