// One call of an op, as the binding sees it: what every check needs to name (the op), to compare with (the dtype and
// the device of the op's first tensor) and to allocate like. An error is an exception whose text begins with `[op] `;
// Python sees it as a RuntimeError.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "bigmodel/tensor.h"
#include "operand.h"
#include "tensor_view.h"

namespace bigmodel::binding {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::span<const std::int64_t>;

// A dimension that a shape check accepts whatever its size.
inline constexpr std::int64_t any_size = -1;
// Shapes of so many are kept off the heap.
inline constexpr std::size_t usual_dims = 8;

class Call {
 public:
  // dtype and device are taken from `first`, which must be float32, bfloat16 or float16.
  Call(const char* op, const char* first_name, const Operand& first);

  const char* op() const { return op_; }
  DType dtype() const { return dtype_; }
  std::int32_t device_index() const { return device_index_; }
  // Whether the CUDA kernels run this call. Under the emulator they take CPU tensors.
  bool on_cuda() const;

  template <class... Parts>
  void check(bool ok, const Parts&... message) const {
    if (!ok) [[unlikely]] {
      fail(message...);
    }
  }

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... message) const {
    std::ostringstream text;
    text << '[' << op_ << "] ";
    (text << ... << message);
    throw std::runtime_error(text.str());
  }

  // An input of the call's dtype, of the given shape (any_size matches all), at most four dimensions.
  TensorView tensor(const char* name, const Operand& tensor, std::initializer_list<std::int64_t> shape) const;
  template <class T>
  TensorView tensor(const char* name, const std::optional<T>& tensor, std::initializer_list<std::int64_t> shape) const {
    return tensor ? this->tensor(name, *tensor, shape) : TensorView{};
  }

  // An input that is float32 whatever the call's dtype.
  TensorView float32(const char* name, const Operand& tensor, std::initializer_list<std::int64_t> shape) const;
  template <class T>
  TensorView float32(const char* name, const std::optional<T>& tensor,
                     std::initializer_list<std::int64_t> shape) const {
    return tensor ? float32(name, *tensor, shape) : TensorView{};
  }

  // An input of the call's dtype or float32.
  TensorView tensor_or_float32(const char* name, const OptionalOperand& tensor,
                               std::initializer_list<std::int64_t> shape) const;

  // An input of one of these dtypes, whatever the call's.
  TensorView one_of(std::initializer_list<DType> dtypes, const char* name, const Operand& tensor,
                    std::initializer_list<std::int64_t> shape) const;

  // [..., features] as [rows, features]: a view where the strides allow it, else of a contiguous copy, which `copy`
  // then keeps alive.
  TensorView rows(const char* name, const Operand& tensor, std::int64_t features, OptionalTensor& copy) const;
  // The same, for a tensor that must have exactly the shape `shape`.
  TensorView rows(const char* name, const Operand& tensor, Sizes shape, OptionalTensor& copy) const;

  // A fresh output of any number of dimensions as [rows, features].
  TensorView fresh_rows(const Tensor& output) const;

  // A tensor saved by a forward pass, which left it with zero elements when it does not exist for these options.
  static bool exists(const OptionalTensor& saved);

  // New tensors. Dense in the order of `sizes` unless strides are given.
  Tensor empty(Sizes sizes, DType dtype) const;
  Tensor empty(Sizes sizes, Sizes strides, DType dtype) const;
  Tensor zeros(Sizes sizes, DType dtype) const;
  // What stands for an output that was not asked for or does not exist: zero elements, the call's dtype.
  Tensor nothing() const;
  Tensor bytes(std::int64_t count) const;

  void check_device(const char* name, const Operand& tensor) const;
  // No two elements of what the op writes to are in one place, as bigmodel_kernels/checks.py says it.
  void check_writable(const char* name, const TensorView& view) const;
  // One flag per gradient that the op could compute.
  void check_output_mask(const std::vector<bool>& output_mask, std::size_t gradients) const;
  void check_float32(const char* name, const Operand& tensor, Sizes shape) const;

 private:
  TensorView view(const char* name, const Operand& tensor, std::initializer_list<std::int64_t> shape) const;
  [[noreturn]] void fail_shape(const char* name, const Operand& tensor, Sizes expected) const;
  [[noreturn]] void fail_dtype(const char* name, const Operand& tensor, const char* expected) const;
  TensorView merged_rows(const Operand& tensor, OptionalTensor& copy) const;

  const char* op_;
  DType dtype_;
  std::int32_t device_type_, device_index_;
};

// The sizes of `tensor` with another last dimension.
class WithFeatures {
 public:
  WithFeatures(const Operand& tensor, std::int64_t features);
  WithFeatures(const WithFeatures&) = delete;
  WithFeatures& operator=(const WithFeatures&) = delete;
  operator Sizes() const { return sizes_; }

 private:
  std::array<std::int64_t, usual_dims> few_;
  std::vector<std::int64_t> many_;
  std::span<std::int64_t> sizes_;
};

// For messages.
std::string shape_text(Sizes sizes);
const char* dtype_name(const Operand& tensor);

}  // namespace bigmodel::binding
