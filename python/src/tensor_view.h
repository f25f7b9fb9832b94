// torch tensor -> TensorView: the only conversion. It checks nothing but what a TensorView cannot hold.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <span>

#include "bigmodel/tensor.h"

namespace bigmodel::binding {

// Sizes and strides as torch keeps them: each question to torch is a call across the C interface, so they are asked
// once.
struct Layout {
  std::span<const std::int64_t> sizes, strides;

  Layout() = default;
  explicit Layout(const torch::stable::Tensor& tensor);
};

// The dtypes that kernels know; nullopt for any other.
std::optional<DType> dtype_of(const torch::stable::Tensor& tensor);

// torch's number for a dtype, as its C interface wants it.
std::int32_t torch_dtype(DType dtype);

// What has at most four dimensions.
TensorView tensor_view(const void* data, const Layout& layout, DType dtype);

// A fresh output, whose layout the caller knows.
TensorView tensor_view(const torch::stable::Tensor& tensor, DType dtype);

}  // namespace bigmodel::binding
