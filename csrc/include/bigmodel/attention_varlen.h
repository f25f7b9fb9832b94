// Attention of packed sequences: the contract shared by every backend.
//
// The tokens of all sequences follow each other, without padding: sequence s has the queries query_starts[s] ...
// query_starts[s + 1] - 1 and the keys key_starts[s] ... key_starts[s + 1] - 1, and is one attention of attention.h of
// its own, with its own q_len and kv_len: queries see no keys but their sequence's. Either may be 0. Its mask is the
// first q_len rows and kv_len columns of mask[s], its slopes are alibi_slopes[s], and dropout's batch index is s.
#pragma once

#include "bigmodel/attention.h"

namespace bigmodel {

// In host memory. Kernels of other devices read the inputs' query_starts and key_starts instead, and no order.
struct PackedSequences {
  std::int64_t count = 0;
  const std::int64_t* query_starts = nullptr;  // [count + 1], never falling, from 0 to the number of queries
  const std::int64_t* key_starts = nullptr;    // the same of keys
  const std::int64_t* order = nullptr;         // [count]: the order in which their work starts, longest first
};

// Views as in attention.h with all tokens along the third dimension and a batch of 1; but mask [count, heads, most
// queries of a sequence, most keys of one] and alibi_slopes [count, heads], after broadcasting.
struct AttentionVarlenForwardArgs {
  AttentionForwardArgs packed;
  PackedSequences sequences;
  void* workspace = nullptr;
};

struct AttentionVarlenBackwardArgs {
  AttentionBackwardArgs packed;
  PackedSequences sequences;
  void* workspace = nullptr;
};

}  // namespace bigmodel
