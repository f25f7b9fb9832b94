// What each op's file registers with torch's dispatcher: the same functions on every device.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <type_traits>

#include "operand.h"

namespace bigmodel::binding {

using Library = torch::stable::detail::StableLibrary;

// What the dispatcher passes for a parameter of an op's function.
template <class Parameter>
struct Dispatched {
  using type = Parameter;
};
template <>
struct Dispatched<const Operand&> {
  using type = const torch::stable::Tensor&;
};
template <>
struct Dispatched<const OptionalOperand&> {
  using type = const std::optional<torch::stable::Tensor>&;
};

// An op's function of operands as one of tensors, which TORCH_BOX takes.
template <auto function>
struct OfTensors;
template <class Result, class... Parameters, Result (*function)(Parameters...)>
struct OfTensors<function> {
  static Result call(typename Dispatched<Parameters>::type... arguments) { return function(arguments...); }
};

void register_attention(Library& library);
void register_attention_weights(Library& library);
void register_attention_varlen(Library& library);
void register_attention_decode(Library& library);
void register_linear(Library& library);
void register_linear_pack(Library& library);  // a layout of the CPU kernels
void register_feed_forward(Library& library);
void register_add_norm(Library& library);
void register_rotary(Library& library);
void register_linear_cross_entropy(Library& library);

}  // namespace bigmodel::binding
