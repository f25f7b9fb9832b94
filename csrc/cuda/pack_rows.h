// Tensors whose rows the tensor-core kernels cannot copy in chunks of 128 bits are copied once into the workspace,
// where they can: so no kernel has a slow path.
#pragma once

#include <cstdint>

#include "bigmodel/tensor.h"
#include "cuda/cuda.h"
#include "cuda/division.cuh"

namespace bigmodel::cuda {

// Whether every row of a tensor [batch, heads, rows, columns] is made of whole, aligned, contiguous chunks.
bool has_packed_rows(const TensorView& view);

// A workspace that is handed out piece by piece. Without memory it counts: the pieces then have addresses, as aligned
// as real ones, that nobody may read.
class Workspace {
 public:
  Workspace() = default;
  explicit Workspace(void* memory) : memory_(reinterpret_cast<std::uintptr_t>(memory)) {}
  std::int64_t used() const { return used_; }
  template <class T>
  T* take(std::int64_t count) {
    const std::uintptr_t at = memory_ + static_cast<std::uintptr_t>(used_);
    used_ += round_up(count * std::int64_t(sizeof(T)), line);
    return reinterpret_cast<T*>(at);
  }

 private:
  static constexpr std::int64_t line = 256;
  std::uintptr_t memory_ = line;
  std::int64_t used_ = 0;
};

// The tensor itself, or a copy with its rows filled up with zeros to whole chunks; `place` null: nothing is launched.
TensorView packed_rows(const TensorView& view, Workspace& workspace, const Place* place);

}  // namespace bigmodel::cuda
