// Rows of a matrix, read and written in chunks of N elements: 128 bits where the memory allows it, else one by one.
#pragma once

#include <cstdint>

#include "bigmodel/tensor.h"
#include "cuda/element.cuh"

namespace bigmodel::cuda {

// A matrix [rows, width] in device memory; absent when data is null.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t row_stride = 0, stride = 0;

  Rows() = default;
  explicit Rows(const TensorView& view)
      : data(static_cast<T*>(view.data)), row_stride(view.stride[0]), stride(view.stride[1]) {}
  // One row.
  __device__ Rows(T* row, std::int64_t stride) : data(row), stride(stride) {}
};

// Whether every 128 bits of every row are whole, contiguous and aligned, in chunks of `size` elements.
inline bool is_packed(const TensorView& view, std::int64_t size) {
  if (!view.data) return true;
  const bool aligned = reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0;
  const bool contiguous = view.stride[1] == 1 && view.size[1] % size == 0;
  return aligned && contiguous && (view.size[0] == 1 || view.stride[0] % size == 0);
}

// The N elements from `column` on, as fp32.
template <int N, class T>
__device__ inline void load(const Rows<T>& matrix, std::int64_t row, int column, float (&values)[N]) {
  const T* const first = matrix.data + row * matrix.row_stride;
  if constexpr (N == 1) {
    values[0] = to_float(first[column * matrix.stride]);
  } else {
#pragma unroll
    for (int i = 0; i < N; i += Pack<T>::size) {
      const auto pack = *reinterpret_cast<const Pack<T>*>(first + column + i);
#pragma unroll
      for (int j = 0; j < Pack<T>::size; ++j) values[i + j] = to_float(pack.element[j]);
    }
  }
}

template <int N, class T>
__device__ inline void store(const Rows<T>& matrix, std::int64_t row, int column, const float (&values)[N]) {
  T* const first = matrix.data + row * matrix.row_stride;
  if constexpr (N == 1) {
    first[column * matrix.stride] = from_float<T>(values[0]);
  } else {
#pragma unroll
    for (int i = 0; i < N; i += Pack<T>::size) {
      Pack<T> pack;
#pragma unroll
      for (int j = 0; j < Pack<T>::size; ++j) pack.element[j] = from_float<T>(values[i + j]);
      *reinterpret_cast<Pack<T>*>(first + column + i) = pack;
    }
  }
}

// A vector seen as a matrix of one row.
inline TensorView as_row(const TensorView& vector) {
  TensorView row = vector;
  row.size[0] = 1;
  row.size[1] = vector.size[0];
  row.stride[0] = 0;
  row.stride[1] = vector.stride[0];
  return row;
}

// A vector of parameters, or of their gradients: of the op's dtype or of fp32.
template <class T>
struct Vector {
  Rows<T> own;
  Rows<float> wide;

  explicit Vector(const TensorView& vector) {
    if (vector.dtype == DType::float32) {
      wide = Rows<float>(as_row(vector));
    } else {
      own = Rows<T>(as_row(vector));
    }
  }
  __device__ bool present() const { return own.data || wide.data; }
};

template <int N, class T>
__device__ inline void load(const Vector<T>& vector, int column, float (&values)[N]) {
  if (vector.wide.data) {
    load(vector.wide, 0, column, values);
  } else {
    load(vector.own, 0, column, values);
  }
}

template <int N, class T>
__device__ inline void store(const Vector<T>& vector, int column, const float (&values)[N]) {
  if (vector.wide.data) {
    store(vector.wide, 0, column, values);
  } else {
    store(vector.own, 0, column, values);
  }
}

}  // namespace bigmodel::cuda
