// Matrices as the products see them, and the workspace cut into arrays.
#pragma once

#include <cstdint>

#include "bigmodel/tensor.h"
#include "cpu/isa/vec.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// Element (i, j) at data[i * row_stride + j * column_stride].
template <class T>
struct Matrix {
  T* data;
  std::int64_t rows, columns, row_stride, column_stride;
};

template <class T>
BIGMODEL_INLINE Matrix<T> matrix(const TensorView& tensor) {
  return {static_cast<T*>(tensor.data), tensor.size[0], tensor.size[1], tensor.stride[0], tensor.stride[1]};
}

template <class T>
BIGMODEL_INLINE Matrix<T> row_major(T* data, std::int64_t rows, std::int64_t columns) {
  return {data, rows, columns, columns, 1};
}

template <class T>
BIGMODEL_INLINE Matrix<T> transposed(Matrix<T> a) {
  return {a.data, a.columns, a.rows, a.column_stride, a.row_stride};
}

// Rows [first, first + count) of a, or nothing of an absent matrix.
template <class T>
BIGMODEL_INLINE Matrix<T> rows_of(Matrix<T> a, std::int64_t first, std::int64_t count) {
  return {a.data ? a.data + first * a.row_stride : nullptr, count, a.columns, a.row_stride, a.column_stride};
}

template <class T>
BIGMODEL_INLINE Matrix<const T> readable(Matrix<T> a) {
  return {a.data, a.rows, a.columns, a.row_stride, a.column_stride};
}

template <class T>
BIGMODEL_INLINE T* at(Matrix<T> a, std::int64_t i, std::int64_t j) {
  return a.data + i * a.row_stride + j * a.column_stride;
}

// Cuts a workspace into arrays that begin at cache lines. Without a workspace it only counts: a kernel's workspace size
// is what its own layout function takes from an empty arena.
struct Arena {
  static constexpr std::int64_t line = 64;
  char* base = nullptr;
  std::int64_t used = 0, most = 0;
};

template <class T>
BIGMODEL_INLINE T* take(Arena& arena, std::int64_t count) {
  T* const array = arena.base ? reinterpret_cast<T*>(arena.base + arena.used) : nullptr;
  arena.used += round_up(count * std::int64_t{sizeof(T)}, Arena::line);
  if (arena.used > arena.most) arena.most = arena.used;
  return array;
}

// Calls body with a value of the C++ type that a floating dtype is stored as.
template <class Body>
BIGMODEL_INLINE void with_type_of(DType dtype, Body body) {
  switch (dtype) {
    case DType::bfloat16:
      return body(bfloat16{});
    case DType::float16:
      return body(float16{});
    default:
      return body(float{});
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
