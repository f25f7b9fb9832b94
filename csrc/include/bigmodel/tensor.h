// A tensor as a kernel sees it: a pointer, a dtype, up to four sizes and strides. It owns nothing.
#pragma once

#include "bigmodel/dtype.h"

namespace bigmodel {

inline constexpr int max_dims = 4;

// Strides are in elements; 0 broadcasts. Unused trailing sizes are 1, unused trailing strides 0. An absent optional
// tensor has data == nullptr.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::float32;
  std::int64_t size[max_dims] = {1, 1, 1, 1};
  std::int64_t stride[max_dims] = {0, 0, 0, 0};
};

}  // namespace bigmodel
