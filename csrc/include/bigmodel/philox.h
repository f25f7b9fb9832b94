// Counter-based dropout: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// One contract for every backend. The random word of element (batch, head, row, column) under a 64-bit seed is word
// (column mod 4) of philox4x32_10(counter = {column div 4, row, head, batch}, key = {low word of seed, high word}).
// The element is kept when word >= floor(dropout_p * 2^32) and then multiplied by 1 / (1 - dropout_p).
// Attention: row is the query index, column the key index. feed_forward: batch and head are 0, row is the token index
// (leading dimensions flattened), column the hidden unit.
#pragma once

#include <cstdint>

namespace bigmodel {

struct Dropout {
  double p = 0.0;  // probability of dropping, in [0, 1); 0: no dropout
  std::uint64_t seed = 0;
  const std::int64_t* device_seed = nullptr;  // in device memory, for kernels there: read instead of seed
  std::int64_t first_batch = 0;               // batch index of the tensors' first: a packed sequence's number
};

}  // namespace bigmodel
