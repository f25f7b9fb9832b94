// A tensor argument as the checks see it. It is a tensor of torch's, or, where Python calls an op directly, what torch
// tells of a plain one without a handle for it, since making one takes longer than checking it (bench/NOTES.md).
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <utility>

#include "tensor_view.h"

namespace bigmodel::binding {

// A tensor on the CPU with elements, of a dtype that the kernels compute. `make` makes torch's tensor of `object`, with
// or without the interpreter's lock.
struct Plain {
  const void* data = nullptr;
  Layout layout;
  DType dtype = DType::float32;
  void* object = nullptr;
  torch::stable::Tensor (*make)(void* object) = nullptr;
};

class Operand {
 public:
  // Of an argument that lives longer.
  Operand(const torch::stable::Tensor& tensor) : borrowed_(&tensor) {}
  explicit Operand(const Plain& plain) : plain_(plain) {}
  static Operand owning(torch::stable::Tensor tensor) {
    Operand operand;
    operand.owned_ = std::move(tensor);
    return operand;
  }

  Layout layout() const { return handle() ? Layout(*handle()) : plain_.layout; }
  std::optional<DType> dtype() const { return handle() ? dtype_of(*handle()) : plain_.dtype; }
  std::int64_t numel() const;
  // For all its elements.
  bool has_memory() const { return !handle() || handle()->numel() == 0 || handle()->const_data_ptr(); }
  const void* data() const { return handle() ? handle()->const_data_ptr() : plain_.data; }
  // torch's numbers.
  std::int32_t torch_dtype() const;
  std::int32_t device_type() const;
  std::int32_t device_index() const;

  torch::stable::Tensor tensor() const { return handle() ? *handle() : plain_.make(plain_.object); }

 private:
  Operand() = default;
  // nullptr: plain_ it is.
  const torch::stable::Tensor* handle() const { return owned_ ? &*owned_ : borrowed_; }

  std::optional<torch::stable::Tensor> owned_;
  const torch::stable::Tensor* borrowed_ = nullptr;
  Plain plain_{};
};

using OptionalOperand = std::optional<Operand>;

}  // namespace bigmodel::binding
