// What an epilogue is made of: vectors of fp32 sums, still in cache, and the tensors beside them. Rows of sums are
// whole vectors long: only tensors of type T have ends to mind.
#pragma once

#include "cpu/activation.h"
#include "cpu/isa/pack.h"
#include "cpu/philox.h"
#include "cpu/product.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// Vector j of a tensor row, of which `count` elements are left.
template <class T>
BIGMODEL_INLINE F32 read(const T* p, std::int64_t stride, std::int64_t j, std::int64_t count) {
  return stride == 1 ? load_up_to(p + j, count) : gather(p + j * stride, stride, count);
}

// One vector of a block: where it lies in the result and in the block's sums, and how many elements are left from
// there.
struct Place {
  std::int64_t row, column, left, offset;
};

// body(place) for every vector of row i of a block.
template <class Body>
BIGMODEL_INLINE void for_each_vector_of(const Block& block, std::int64_t i, Body body) {
  for (std::int64_t j = 0; j < block.columns; j += lanes) {
    body(Place{block.row + i, block.column + j, block.columns - j, i * block.stride + j});
  }
}

// All of an epilogue for a vector is done before the next vector: one reading of the sums, one writing of the result.
template <class Body>
BIGMODEL_INLINE void for_each_vector(const Block& block, Body body) {
  for (std::int64_t i = 0; i < block.rows; ++i) for_each_vector_of(block, i, body);
}

template <class T>
BIGMODEL_INLINE F32 read(Matrix<T> from, const Place& place) {
  return read(at(from, place.row, place.column), from.column_stride, 0, place.left);
}

// To rows of unit stride.
template <class T>
BIGMODEL_INLINE void write(Matrix<T> to, const Place& place, F32 values) {
  store_up_to(at(to, place.row, place.column), values, place.left);
}
template <class T>
BIGMODEL_INLINE void write_if_there(Matrix<T> to, const Place& place, F32 values) {
  if (to.data) write(to, place, values);
}

template <class T>
static void load_row(float* row, const T* from, std::int64_t stride, std::int64_t count) {
  for (std::int64_t j = 0; j < count; j += lanes) store(row + j, read(from, stride, j, count - j));
}

template <class T>
static void store_row(T* to, const float* row, std::int64_t count) {
  for (std::int64_t j = 0; j < count; j += lanes) store_up_to(to + j, load(row + j), count - j);
}

template <class T>
static void add_tensor_row(float* row, const T* from, std::int64_t stride, std::int64_t count) {
  for (std::int64_t j = 0; j < count; j += lanes) store(row + j, load(row + j) + read(from, stride, j, count - j));
}

BIGMODEL_INLINE void add_row(float* row, const float* other, std::int64_t count) {
  for (std::int64_t j = 0; j < count; j += lanes) store(row + j, load(row + j) + load(other + j));
}

BIGMODEL_INLINE void multiply_row(float* row, const float* other, std::int64_t count) {
  for (std::int64_t j = 0; j < count; j += lanes) store(row + j, load(row + j) * load(other + j));
}

// factors[j] = what dropout multiplies column first + j of a token's hidden units by; first is a multiple of 4.
static __attribute__((unused)) void dropout_row(const Dropout& dropout, std::int64_t token, std::int64_t first,
                                                float* factors, std::int64_t count) {
  const DropoutFactor factor(dropout);
  constexpr std::int64_t together = 4 * lanes;  // one counter, four words, per lane
  for (std::int64_t j = 0; j < count; j += together) {
    PhiloxWord words[4] = {{}, same_word(std::uint32_t(token)), same_word(0), same_word(0)};
    for (int l = 0; l < lanes; ++l) words[0].lane[l] = std::uint32_t((first + j) / 4 + l);
    philox4x32_10(words, dropout.seed);
    float kept[4][lanes];
    for (int w = 0; w < 4; ++w) store(kept[w], factor(words[w]));
    const std::int64_t last = count - j < together ? count - j : together;
    for (std::int64_t c = 0; c < last; ++c) factors[j + c] = kept[c % 4][c / 4];
  }
}

// A bias as fp32, filled up to whole vectors with zeros; zeros where there is none.
template <class T>
BIGMODEL_INLINE void load_bias(float* bias, const TensorView& tensor, std::int64_t count) {
  if (tensor.data) {
    load_row(bias, static_cast<const T*>(tensor.data), tensor.stride[0], count);
  } else {
    __builtin_memset(bias, 0, round_up(count, lanes) * sizeof(float));
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
