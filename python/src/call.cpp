#include "call.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <utility>

namespace bigmodel::binding {
namespace {

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float16:
      return "float16";
    case DType::boolean:
      return "bool";
    case DType::int8:
      return "int8";
    case DType::int32:
      return "int32";
    case DType::int64:
      return "int64";
  }
  return "";
}

Tensor empty_strided(Sizes sizes, Sizes strides, std::int32_t dtype, std::int32_t device_type,
                     std::int32_t device_index) {
  // torch's empty_strided without a trip through its dispatcher.
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<std::int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), dtype, device_type, device_index, &handle));
  return Tensor(handle);
}

bool matches(Sizes sizes, Sizes expected) {
  return std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end(),
                    [](std::int64_t size, std::int64_t wanted) { return wanted == any_size || size == wanted; });
}

}  // namespace

// Only for messages: every dtype that torch's C interface names.
const char* dtype_name(const Operand& tensor) {
  const std::int32_t number = tensor.torch_dtype();
  const std::pair<std::int32_t, const char*> names[] = {
      {aoti_torch_dtype_float32(), "float32"},
      {aoti_torch_dtype_bfloat16(), "bfloat16"},
      {aoti_torch_dtype_float16(), "float16"},
      {aoti_torch_dtype_bool(), "bool"},
      {aoti_torch_dtype_float64(), "float64"},
      {aoti_torch_dtype_int64(), "int64"},
      {aoti_torch_dtype_int32(), "int32"},
      {aoti_torch_dtype_int16(), "int16"},
      {aoti_torch_dtype_int8(), "int8"},
      {aoti_torch_dtype_uint8(), "uint8"},
      {aoti_torch_dtype_uint16(), "uint16"},
      {aoti_torch_dtype_uint32(), "uint32"},
      {aoti_torch_dtype_uint64(), "uint64"},
      {aoti_torch_dtype_complex32(), "complex32"},
      {aoti_torch_dtype_complex64(), "complex64"},
      {aoti_torch_dtype_complex128(), "complex128"},
      {aoti_torch_dtype_float8_e5m2(), "float8_e5m2"},
      {aoti_torch_dtype_float8_e4m3fn(), "float8_e4m3fn"},
  };
  for (const auto& [known, name] : names) {
    if (known == number) return name;
  }
  return "a dtype without a name here";
}

WithFeatures::WithFeatures(const Operand& tensor, std::int64_t features) {
  const Sizes given = tensor.layout().sizes;
  many_.resize(given.size() > usual_dims ? given.size() : 0);
  sizes_ = {many_.empty() ? few_.data() : many_.data(), given.size()};
  std::ranges::copy(given, sizes_.begin());
  sizes_.back() = features;
}

std::string shape_text(Sizes sizes) {
  std::string text = "[";
  for (std::int64_t size : sizes) {
    if (text.size() > 1) text += ", ";
    text += size == any_size ? "*" : std::to_string(size);
  }
  return text + "]";
}

Call::Call(const char* op, const char* first_name, const Operand& first)
    : op_(op), device_type_(first.device_type()), device_index_(first.device_index()) {
  const std::optional<DType> dtype = first.dtype();
  const bool computes = dtype == DType::float32 || dtype == DType::bfloat16 || dtype == DType::float16;
  if (!computes) fail_dtype(first_name, first, "float32, bfloat16 or float16");
  dtype_ = *dtype;
}

bool Call::on_cuda() const {
#if defined(BIGMODEL_EMULATED)
  return true;
#else
  return device_type_ == aoti_torch_device_type_cuda();
#endif
}

TensorView Call::view(const char* name, const Operand& tensor, std::initializer_list<std::int64_t> shape) const {
  check_device(name, tensor);
  const Layout layout = tensor.layout();
  if (!matches(layout.sizes, shape)) fail_shape(name, tensor, shape);
  return tensor_view(tensor.data(), layout, dtype_);
}

TensorView Call::tensor(const char* name, const Operand& tensor, std::initializer_list<std::int64_t> shape) const {
  if (tensor.dtype() != dtype_) fail_dtype(name, tensor, name_of(dtype_));
  return view(name, tensor, shape);
}

TensorView Call::float32(const char* name, const Operand& tensor, std::initializer_list<std::int64_t> shape) const {
  check_float32(name, tensor, shape);
  return tensor_view(tensor.data(), tensor.layout(), DType::float32);
}

TensorView Call::tensor_or_float32(const char* name, const OptionalOperand& tensor,
                                   std::initializer_list<std::int64_t> shape) const {
  if (!tensor) return {};
  const std::optional<DType> dtype = tensor->dtype();
  if (dtype != dtype_ && dtype != DType::float32) {
    const std::string expected = std::string(name_of(dtype_)) + " (the dtype of the first argument) or float32";
    fail_dtype(name, *tensor, expected.c_str());
  }
  TensorView result = view(name, *tensor, shape);
  result.dtype = *dtype;
  return result;
}

TensorView Call::one_of(std::initializer_list<DType> dtypes, const char* name, const Operand& tensor,
                        std::initializer_list<std::int64_t> shape) const {
  const std::optional<DType> dtype = tensor.dtype();
  if (!dtype || std::find(dtypes.begin(), dtypes.end(), *dtype) == dtypes.end()) {
    std::string expected;
    for (const DType each : dtypes) expected += (expected.empty() ? "" : " or ") + std::string(name_of(each));
    fail_dtype(name, tensor, expected.c_str());
  }
  TensorView result = view(name, tensor, shape);
  result.dtype = *dtype;
  return result;
}

TensorView Call::rows(const char* name, const Operand& tensor, std::int64_t features, OptionalTensor& copy) const {
  const Layout layout = tensor.layout();
  check(!layout.sizes.empty(), name, " has no dimensions, expected at least one");
  if (features != any_size && layout.sizes.back() != features) {
    fail(name, " has shape ", shape_text(layout.sizes), ", expected ", features, " in its last dimension");
  }
  return rows(name, tensor, layout.sizes, copy);
}

TensorView Call::rows(const char* name, const Operand& tensor, Sizes shape, OptionalTensor& copy) const {
  check_device(name, tensor);
  if (tensor.dtype() != dtype_) fail_dtype(name, tensor, name_of(dtype_));
  if (!matches(tensor.layout().sizes, shape)) fail_shape(name, tensor, shape);
  return merged_rows(tensor, copy);
}

// Leading dimensions become one where each is laid out as the continuation of the next; a dimension of size 1 joins
// anything.
TensorView Call::merged_rows(const Operand& tensor, OptionalTensor& copy) const {
  const Layout layout = tensor.layout();
  const std::size_t last = layout.sizes.size() - 1;
  TensorView view;
  view.dtype = dtype_;
  view.size[1] = layout.sizes[last];
  view.stride[1] = layout.strides[last];
  if (tensor.numel() == 0) {  // nothing to lay out; and torch calls it contiguous whatever its strides are
    for (std::size_t dim = 0; dim < last; ++dim) view.size[0] *= layout.sizes[dim];
    view.data = const_cast<void*>(tensor.data());
    return view;
  }
  for (std::size_t dim = last; dim-- > 0;) {
    const std::int64_t size = layout.sizes[dim], stride = layout.strides[dim];
    if (size == 1) continue;
    if (view.size[0] == 1) {
      view.stride[0] = stride;
    } else if (stride != view.stride[0] * view.size[0] && size * view.size[0] != 0) {
      copy = torch::stable::contiguous(tensor.tensor());
      return merged_rows(*copy, copy);
    }
    view.size[0] *= size;
  }
  view.data = const_cast<void*>(tensor.data());
  return view;
}

TensorView Call::fresh_rows(const Tensor& output) const {
  OptionalTensor never_copied;
  return merged_rows(output, never_copied);
}

bool Call::exists(const OptionalTensor& saved) { return saved && saved->numel() > 0; }

Tensor Call::empty(Sizes sizes, DType dtype) const {
  std::array<std::int64_t, usual_dims> few;
  std::vector<std::int64_t> many(sizes.size() > usual_dims ? sizes.size() : 0);
  const std::span<std::int64_t> strides(many.empty() ? few.data() : many.data(), sizes.size());
  std::int64_t stride = 1;
  for (std::size_t dim = sizes.size(); dim-- > 0;) {
    strides[dim] = stride;
    stride *= std::max<std::int64_t>(sizes[dim], 1);
  }
  return empty(sizes, strides, dtype);
}

Tensor Call::empty(Sizes sizes, Sizes strides, DType dtype) const {
  return empty_strided(sizes, strides, torch_dtype(dtype), device_type_, device_index_);
}

Tensor Call::zeros(Sizes sizes, DType dtype) const {
  Tensor tensor = empty(sizes, dtype);
  torch::stable::zero_(tensor);
  return tensor;
}

Tensor Call::nothing() const {
  constexpr std::int64_t zero = 0, one = 1;
  return empty({&zero, 1}, {&one, 1}, dtype_);
}

Tensor Call::bytes(std::int64_t count) const {
  constexpr std::int64_t one = 1;
  return empty_strided({&count, 1}, {&one, 1}, aoti_torch_dtype_uint8(), device_type_, device_index_);
}

void Call::check_device(const char* name, const Operand& tensor) const {
  const bool here = tensor.device_type() == device_type_ && tensor.device_index() == device_index_;
  check(here, name, " is on another device than the first argument");
  check(tensor.has_memory(), name, " has elements but no memory");
}

void Call::check_writable(const char* name, const TensorView& view) const {
  if (std::find(view.size, view.size + max_dims, 0) != view.size + max_dims) return;
  for (int dim = 0; dim < max_dims; ++dim) {
    if (view.size[dim] <= 1) continue;
    std::int64_t spanned = 0;  // by the strides that are no larger
    for (int other = 0; other < max_dims; ++other) {
      const bool within = other != dim && view.stride[other] <= view.stride[dim];
      spanned += within ? (view.size[other] - 1) * view.stride[other] : 0;
    }
    check(view.stride[dim] > spanned, name, " has strides whose elements share memory, expected memory of its own for ",
          "each, since they are written");
  }
}

void Call::check_float32(const char* name, const Operand& tensor, Sizes shape) const {
  check_device(name, tensor);
  if (tensor.dtype() != DType::float32) fail_dtype(name, tensor, "float32");
  if (!matches(tensor.layout().sizes, shape)) fail_shape(name, tensor, shape);
}

void Call::check_output_mask(const std::vector<bool>& output_mask, std::size_t gradients) const {
  check(output_mask.size() == gradients, "output_mask has ", output_mask.size(), " elements, expected ", gradients);
}

void Call::fail_shape(const char* name, const Operand& tensor, Sizes expected) const {
  fail(name, " has shape ", shape_text(tensor.layout().sizes), ", expected ", shape_text(expected));
}

void Call::fail_dtype(const char* name, const Operand& tensor, const char* expected) const {
  fail(name, " has dtype ", dtype_name(tensor), ", expected ", expected);
}

}  // namespace bigmodel::binding
