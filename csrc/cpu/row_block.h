// Rows of a tensor, a block at a time: what kernels that work row by row read through.
#pragma once

#include "bigmodel/tensor.h"
#include "cpu/isa/loops.h"
#include "cpu/isa/pack.h"
#include "cpu/operands.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

namespace {

constexpr std::int64_t block_size = 4096;
std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// One line of a tensor: a row of a matrix, or a vector.
struct Line {
  const char* data;
  DType dtype;
  std::int64_t stride;
};

Line row_of(const TensorView& matrix, std::int64_t row) {
  if (!matrix.data) return {nullptr, matrix.dtype, 0};
  const std::int64_t offset = row * matrix.stride[0] * bytes_of(matrix.dtype);
  return {static_cast<const char*>(matrix.data) + offset, matrix.dtype, matrix.stride[1]};
}

Line line_of(const TensorView& vector) {
  return {static_cast<const char*>(vector.data), vector.dtype, vector.stride[0]};
}

// The same row of a contiguous output.
template <class T>
T* output_row(const TensorView& matrix, std::int64_t row) {
  return matrix.data ? static_cast<T*>(matrix.data) + row * matrix.size[1] : nullptr;
}

// A block of a line as T: where it lies if it is that already, else a copy. Asked again for what it holds, it answers
// at once.
template <class T>
class Block {
 public:
  // Elements [begin, begin + count) of the line; `absent` for each when the tensor is.
  const T* read(const Line& line, std::int64_t begin, std::int64_t count, float absent = 0.0f) {
    if (!line.data) return fill(absent, count);
    const char* start = line.data + begin * line.stride * bytes_of(line.dtype);
    if (line.dtype == dtype_of<T> && line.stride == 1) return reinterpret_cast<const T*>(start);
    if (start != held_) {
      if (line.dtype == DType::float32) convert<float>(start, line.stride, count);
      if (line.dtype == DType::bfloat16) convert<bfloat16>(start, line.stride, count);
      if (line.dtype == DType::float16) convert<float16>(start, line.stride, count);
      held_ = start;
    }
    return values_;
  }

 private:
  template <class Source>
  void convert(const char* start, std::int64_t stride, std::int64_t count) {
    copy_in(1, count, reinterpret_cast<const Source*>(start), 0, stride, values_, 0);
  }

  const T* fill(float value, std::int64_t count) {
    for (; filled_ < count; filled_ += lanes) store(values_ + filled_, set1(value));
    return values_;
  }

  const char* held_ = nullptr;
  std::int64_t filled_ = 0;
  alignas(64) T values_[block_size + lanes];
};

// The row that comes next, asked for into the second-level cache by the passes that read this one: the passes
// over a row that a cache holds leave the memory idle (bench/NOTES.md).
template <class T>
struct Ahead {
  const T *first, *second;  // second: nullptr where there is none

  BIGMODEL_INLINE_MEMBER void fetch(std::int64_t j, int chain) const {
    if (chain * lanes * sizeof(T) % 64 != 0) return;
    __builtin_prefetch(first + j, 0, 2);
    if (second) __builtin_prefetch(second + j, 0, 2);
  }
};

template <class T>
Ahead<T> ahead(const Line& first, const Line& second, std::int64_t begin) {
  const T *a = reinterpret_cast<const T*>(first.data), *b = reinterpret_cast<const T*>(second.data);
  return {a + begin, b ? b + begin : nullptr};
}

// Outputs that no cache would keep for their reader go past the caches, so that memory is not read only to be
// overwritten (16384 x 4096 on one Zen 3 core: fp32 50 ms without, 35 to 40 with).
bool worth_streaming(const TensorView& output) {
  constexpr std::int64_t cached_bytes = std::int64_t{64} << 20;
  const std::int64_t row_bytes = output.size[1] * bytes_of(output.dtype);
  return output.size[0] * row_bytes > cached_bytes && row_bytes % 64 == 0 &&
         reinterpret_cast<std::uintptr_t>(output.data) % 64 == 0;
}

}  // namespace

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
