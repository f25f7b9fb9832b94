// The operands of products, in the Element that the CPU target multiplies: fp32, or bfloat16 by pairs.
#pragma once

#include "bigmodel/tensor.h"
#include "cpu/isa/pack.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// In which products of tensors of type T are formed.
template <class T>
using ElementOf = typename Multiply<T>::Element;
template <class Element>
using LaneOf = typename Layout<Element>::Lane;
template <class Element>
inline constexpr bool is_float = Layout<Element>::group == 1;

template <class T>
inline constexpr DType dtype_of = DType::float32;
template <>
inline constexpr DType dtype_of<bfloat16> = DType::bfloat16;
template <>
inline constexpr DType dtype_of<float16> = DType::float16;

// A matrix by rows: the lhs of a product.
template <class Element>
struct Rows {
  const Element* data;
  std::int64_t stride;
};

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
