// The CUDA backend as its callers see it: for each op and direction the workspace that it wants and its launch. Every
// pointer in the arguments is device memory. A launch does not wait for the device, allocates nothing, and works under
// graph capture. Plain C++: callers need no CUDA headers.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "bigmodel/add_norm.h"
#include "bigmodel/attention.h"
#include "bigmodel/attention_decode.h"
#include "bigmodel/attention_varlen.h"
#include "bigmodel/feed_forward.h"
#include "bigmodel/linear.h"
#include "bigmodel/linear_cross_entropy.h"
#include "bigmodel/rotary.h"

namespace bigmodel::cuda {

// What CUDA reports, in words.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A stream of the current device, and what launches want to know of that device.
struct Place {
  void* stream = nullptr;  // a cudaStream_t
  int capability = 0;      // compute capability, major * 10 + minor
  int multiprocessors = 0;
  int shared_memory = 0;  // bytes that one block may have
  bool tf32 = false;      // whether products of fp32 may round their operands to TF32, on tensor cores
};

// Of the current device. tf32_allowed: by the caller; devices before sm_80 have none. Throws Error.
Place place(int device, void* stream, bool tf32_allowed);

// Bytes of device memory at args.workspace, aligned to 256.
std::int64_t workspace_bytes(const AddNormForwardArgs& args, const Place& place);
std::int64_t workspace_bytes(const AddNormBackwardArgs& args, const Place& place);
std::int64_t workspace_bytes(const AttentionForwardArgs& args, const Place& place);
std::int64_t workspace_bytes(const AttentionBackwardArgs& args, const Place& place);
std::int64_t workspace_bytes(const AttentionVarlenForwardArgs& args, const Place& place);
std::int64_t workspace_bytes(const AttentionVarlenBackwardArgs& args, const Place& place);
std::int64_t workspace_bytes(const AttentionWeightsForwardArgs& args, const Place& place);
std::int64_t workspace_bytes(const AttentionWeightsBackwardArgs& args, const Place& place);
std::int64_t workspace_bytes(const LinearForwardArgs& args, const Place& place);
std::int64_t workspace_bytes(const LinearBackwardArgs& args, const Place& place);
std::int64_t workspace_bytes(const FeedForwardForwardArgs& args, const Place& place);
std::int64_t workspace_bytes(const FeedForwardBackwardArgs& args, const Place& place);
std::int64_t workspace_bytes(const AttentionDecodeArgs& args, const Place& place);
std::int64_t workspace_bytes(const RotaryArgs& args, const Place& place);
std::int64_t workspace_bytes(const LinearCrossEntropyForwardArgs& args, const Place& place);
std::int64_t workspace_bytes(const LinearCrossEntropyBackwardArgs& args, const Place& place);

// Launch. Throws Error where CUDA refuses.
void run(const AddNormForwardArgs& args, const Place& place);
void run(const AddNormBackwardArgs& args, const Place& place);
void run(const AttentionForwardArgs& args, const Place& place);
void run(const AttentionBackwardArgs& args, const Place& place);
void run(const AttentionVarlenForwardArgs& args, const Place& place);
void run(const AttentionVarlenBackwardArgs& args, const Place& place);
void run(const AttentionWeightsForwardArgs& args, const Place& place);
void run(const AttentionWeightsBackwardArgs& args, const Place& place);
void run(const LinearForwardArgs& args, const Place& place);
void run(const LinearBackwardArgs& args, const Place& place);
void run(const FeedForwardForwardArgs& args, const Place& place);
void run(const FeedForwardBackwardArgs& args, const Place& place);
void run(const AttentionDecodeArgs& args, const Place& place);
void run(const RotaryArgs& args, const Place& place);
void run(const LinearCrossEntropyForwardArgs& args, const Place& place);
void run(const LinearCrossEntropyBackwardArgs& args, const Place& place);

}  // namespace bigmodel::cuda
