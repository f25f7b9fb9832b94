// Where packed sequences (bigmodel/attention_varlen.h) start, as kernels read it: in device memory, for which no host
// waits. So a grid is made for whatever the lengths are. Tile start[s] / size + s is the first of sequence s, which
// leaves every sequence the tiles that it needs; the few that are left have no rows, and their blocks leave at once.
#pragma once

#include <cstdint>

#include "bigmodel/tensor.h"
#include "cuda/division.cuh"
#include "cuda/warp.cuh"

namespace bigmodel::cuda {

// A tile of a grid as the `number`th of one sequence.
struct SequenceTile {
  int sequence, number;
};

// Of queries or of keys. Absent where sequences are not packed: these are as long as the tensors' rows are many.
struct Starts {
  const std::int32_t* data = nullptr;  // of int64 the low halves: there are fewer tokens than 2^31
  std::int64_t stride = 0;
  int sequences = 0, tokens = 0;

  Starts() = default;
  Starts(const TensorView& starts, std::int64_t tokens)
      : data(static_cast<const std::int32_t*>(starts.data)),
        stride(starts.stride[0] * (starts.dtype == DType::int64 ? 2 : 1)),
        sequences(static_cast<int>(starts.size[0] - 1)),
        tokens(static_cast<int>(tokens)) {}

  // Tiles of `size` rows for `rows` rows in all.
  std::int64_t tiles(std::int64_t rows, int size) const {
    return data ? rows / size + sequences : ceil_div(rows, size);
  }
  // What the host can know of a sequence's length: the mean.
  std::int64_t usual_length(std::int64_t rows) const { return data ? ceil_div(rows, sequences) : rows; }

  // No check has seen the numbers: whatever they are, nothing outside the tokens is touched.
  __device__ int operator[](int s) const { return min(max(data[s * stride], 0), tokens); }
  __device__ int length(int s) const { return max((*this)[s + 1] - (*this)[s], 0); }

  // Where tokens have `each` rows.
  __device__ static int first_tile(int start, int s, int size, int each) {
    return static_cast<int>(std::int64_t(start) * each / size) + s;
  }
  // That of the last sequence whose first tile is not behind it. Every lane of a warp looks at another sequence.
  __device__ SequenceTile find(int tile, int size, int each) const {
    int first = 0, end = sequences, tiles_before = 0;
    while (end - first > 1) {
      const int step = ceil_div(end - first, warp_size), mine = first + lane_id() * step;
      const int its_first = mine < end ? first_tile((*this)[mine], mine, size, each) : tile + 1;
      const int last = max(31 - __clz(static_cast<int>(__ballot_sync(whole_warp, its_first <= tile))), 0);
      tiles_before = __shfl_sync(whole_warp, its_first, last);
      first += last * step;
      end = min(first + step, end);
    }
    return {agreed(first), agreed(max(tile - tiles_before, 0))};
  }
};

}  // namespace bigmodel::cuda
