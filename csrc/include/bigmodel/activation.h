// Activations of linear and feed_forward; formulas live once per backend (csrc/cpu/activation.h).
#pragma once

#include <cstdint>

namespace bigmodel {

enum class Activation : std::int32_t { none, relu, gelu, gelu_tanh, silu };

}  // namespace bigmodel
