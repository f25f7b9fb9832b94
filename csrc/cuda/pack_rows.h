// Tensors of 16-bit elements whose rows the tensor-core kernels cannot copy in chunks of 128 bits are copied once into
// the workspace, where they can: so no kernel has a slow path.
#pragma once

#include "bigmodel/tensor.h"
#include "cuda/cuda.h"

namespace bigmodel::cuda {

// Whether every row of a tensor [batch, heads, rows, columns] is made of whole, aligned, contiguous chunks.
bool has_packed_rows(const TensorView& view);

// A workspace that is handed out piece by piece; without memory it only counts.
class Workspace {
 public:
  explicit Workspace(void* memory = nullptr) : memory_(static_cast<char*>(memory)) {}
  std::int64_t used() const { return used_; }
  // Aligned to 256 bytes; null without memory.
  template <class T>
  T* take(std::int64_t count) {
    constexpr std::int64_t line = 256;
    char* const at = memory_ ? memory_ + used_ : nullptr;
    used_ += (count * std::int64_t(sizeof(T)) + line - 1) / line * line;
    return reinterpret_cast<T*>(at);
  }

 private:
  char* memory_;
  std::int64_t used_ = 0;
};

// The tensor itself, or a copy with its rows filled up with zeros to whole chunks; `place` null: nothing is launched.
TensorView packed_rows(const TensorView& view, Workspace& workspace, const Place* place);

}  // namespace bigmodel::cuda
