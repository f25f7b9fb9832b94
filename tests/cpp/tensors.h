// Tensors for the kernels' tests, ending at a page that may not be touched, and the run of a kernel.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "bigmodel/parallel.h"
#include "bigmodel/tensor.h"
#include "check.h"
#include "cpu/cpu.h"
#include "guarded.h"
#include "numbers.h"

namespace bigmodel::test {

// The most threads at once that kernels have asked for since a test has set it.
extern int most_workers;

// What a tensor that kernels take in any dtype looks like to the naive loops.
class Tensor {
 public:
  Tensor() = default;  // absent

  // Sizes, outermost first; neighbours of the last dimension lie `gap` elements apart.
  template <class T>
  static Tensor make(T, std::initializer_list<std::int64_t> sizes, std::int64_t gap = 1) {
    return Tensor(Format<T>::dtype, sizeof(T), sizes, gap);
  }
  static Tensor make_boolean(std::initializer_list<std::int64_t> sizes) { return Tensor(DType::boolean, 1, sizes, 1); }
  static Tensor make_int8(std::initializer_list<std::int64_t> sizes) { return Tensor(DType::int8, 1, sizes, 1); }
  static Tensor make_int64(std::initializer_list<std::int64_t> sizes) { return Tensor(DType::int64, 8, sizes, 1); }
  Tensor(Tensor&& other) { *this = static_cast<Tensor&&>(other); }
  Tensor& operator=(Tensor&& other) {
    delete bytes_;
    bytes_ = other.bytes_;
    view_ = other.view_;
    other.bytes_ = nullptr;
    other.view_.data = nullptr;
    return *this;
  }
  ~Tensor() { delete bytes_; }

  const TensorView& view() const { return view_; }
  bool present() const { return view_.data != nullptr; }

  // Reads with broadcasting of dimensions of size 1; an absent tensor reads as `absent`.
  double at(std::initializer_list<std::int64_t> index, double absent = 0.0) const {
    if (!present()) return absent;
    const std::int64_t at = offset(index);
    if (view_.dtype == DType::float32) return static_cast<const float*>(view_.data)[at];
    if (view_.dtype == DType::bfloat16) return value_of(static_cast<const bfloat16*>(view_.data)[at]);
    if (view_.dtype == DType::float16) return value_of(static_cast<const float16*>(view_.data)[at]);
    if (view_.dtype == DType::int8) return static_cast<const std::int8_t*>(view_.data)[at];
    if (view_.dtype == DType::int64) return static_cast<double>(static_cast<const std::int64_t*>(view_.data)[at]);
    return static_cast<const std::uint8_t*>(view_.data)[at];
  }
  void set(std::initializer_list<std::int64_t> index, double value) {
    const std::int64_t at = offset(index);
    if (view_.dtype == DType::float32) assign(static_cast<float*>(view_.data)[at], value);
    if (view_.dtype == DType::bfloat16) assign(static_cast<bfloat16*>(view_.data)[at], value);
    if (view_.dtype == DType::float16) assign(static_cast<float16*>(view_.data)[at], value);
    if (view_.dtype == DType::int8) static_cast<std::int8_t*>(view_.data)[at] = static_cast<std::int8_t>(value);
    if (view_.dtype == DType::int64) static_cast<std::int64_t*>(view_.data)[at] = static_cast<std::int64_t>(value);
    if (view_.dtype == DType::boolean) static_cast<std::uint8_t*>(view_.data)[at] = value != 0.0;
  }

  template <class Value>
  void fill(Value value) {
    std::int64_t index[4];
    for (index[0] = 0; index[0] < view_.size[0]; ++index[0])
      for (index[1] = 0; index[1] < view_.size[1]; ++index[1])
        for (index[2] = 0; index[2] < view_.size[2]; ++index[2])
          for (index[3] = 0; index[3] < view_.size[3]; ++index[3])
            set({index[0], index[1], index[2], index[3]}, value());
  }
  void fill_normal(Random& random) {
    fill([&] { return random.normal(); });
  }

 private:
  Tensor(DType dtype, std::size_t element, std::initializer_list<std::int64_t> sizes, std::int64_t gap) {
    view_.dtype = dtype;
    std::int64_t count = gap;
    int dimension = static_cast<int>(sizes.size());
    for (auto size = sizes.end(); size != sizes.begin();) {
      view_.size[--dimension] = *--size;
      view_.stride[dimension] = count;
      count *= *size;
    }
    bytes_ = new Guarded<char>(count > 0 ? static_cast<std::size_t>(count - gap + 1) * element : 0);
    view_.data = bytes_->data();
  }

  std::int64_t offset(std::initializer_list<std::int64_t> index) const {
    std::int64_t at = 0;
    int dimension = 0;
    for (const std::int64_t i : index) {
      at += view_.size[dimension] == 1 ? 0 : i * view_.stride[dimension];
      ++dimension;
    }
    return at;
  }

  Guarded<char>* bytes_ = nullptr;
  TensorView view_;
};

// The same tensor expanded to these sizes, as the binding hands masks to kernels.
inline TensorView broadcast(const Tensor& tensor, std::initializer_list<std::int64_t> sizes) {
  TensorView view = tensor.view();
  if (!view.data) return view;
  int dimension = 0;
  for (const std::int64_t size : sizes) {
    if (view.size[dimension] == 1) view.stride[dimension] = 0;
    view.size[dimension++] = size;
  }
  return view;
}

// Runs a kernel with exactly the workspace it asked for, aligned as the binding aligns it.
template <class Args>
void run(const cpu::Kernel<Args>& kernel, Args args) {
  Guarded<char> workspace(static_cast<std::size_t>(kernel.workspace(args)), 64);
  if constexpr (requires { args.workspace; }) args.workspace = workspace.data();
  kernel.run(args);
}

// Error allowed for a value of dtype T that sums terms of total size `size`: half a unit of the result, and a rounding
// of every term to T (bf16 targets multiply bf16) and to fp32.
template <class T>
double allowed(double want, double size, double terms = 8.0) {
  const double term = sizeof(T) == 4 ? 0x1p-23 : Format<T>::epsilon;
  return Format<T>::epsilon * std::fabs(want) + terms * term * size + 1e-30 + (sizeof(T) == 2 ? 0x1p-24 : 0.0);
}

void test_add_norm();
void test_attention();
void test_attention_varlen();
void test_attention_decode();
void test_linear();
void test_feed_forward();
void test_rotary();
void test_linear_cross_entropy();

}  // namespace bigmodel::test
