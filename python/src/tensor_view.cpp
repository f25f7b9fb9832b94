#include "tensor_view.h"

#include <torch/csrc/stable/stableivalue_conversions.h>

namespace bigmodel::binding {

using torch::stable::Tensor;

Layout::Layout(const Tensor& tensor) {
  std::int64_t dims = 0;
  std::int64_t *size = nullptr, *stride = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor.get(), &dims));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor.get(), &size));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor.get(), &stride));
  sizes = {size, static_cast<std::size_t>(dims)};
  strides = {stride, static_cast<std::size_t>(dims)};
}

std::optional<DType> dtype_of(const Tensor& tensor) {
  std::int32_t number = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &number));
  for (DType dtype :
       {DType::float32, DType::bfloat16, DType::float16, DType::boolean, DType::int8, DType::int32, DType::int64}) {
    if (number == torch_dtype(dtype)) return dtype;
  }
  return std::nullopt;
}

std::int32_t torch_dtype(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return aoti_torch_dtype_float32();
    case DType::bfloat16:
      return aoti_torch_dtype_bfloat16();
    case DType::float16:
      return aoti_torch_dtype_float16();
    case DType::boolean:
      return aoti_torch_dtype_bool();
    case DType::int8:
      return aoti_torch_dtype_int8();
    case DType::int32:
      return aoti_torch_dtype_int32();
    case DType::int64:
      return aoti_torch_dtype_int64();
  }
  return -1;
}

TensorView tensor_view(const void* data, const Layout& layout, DType dtype) {
  TensorView view;
  // From a const pointer, so that copy-on-write inputs stay uncopied (but for those of a direct call that DLPack
  // describes): kernels write only to fresh outputs, which have no other owner.
  view.data = const_cast<void*>(data);
  view.dtype = dtype;
  for (std::size_t dim = 0; dim < layout.sizes.size(); ++dim) {
    view.size[dim] = layout.sizes[dim];
    view.stride[dim] = layout.strides[dim];
  }
  return view;
}

TensorView tensor_view(const Tensor& tensor, DType dtype) {
  return tensor_view(tensor.const_data_ptr(), Layout(tensor), dtype);
}

}  // namespace bigmodel::binding
