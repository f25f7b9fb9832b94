// Activations and their derivatives, each formula written once over fp32. gelu is x Phi(x) with the normal distribution
// Phi, gelu_tanh its approximation by tanh (Hendrycks and Gimpel, 2016); silu is x sigmoid(x) (Elfwing et al., 2017).
#pragma once

#include <cmath>

#include "bigmodel/activation.h"

namespace bigmodel::cuda {

struct ValueAndSlope {
  float value, slope;
};

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// max(0, x) keeps a NaN of x, as torch does.
__device__ inline ValueAndSlope relu(float x) { return {x < 0.0f ? 0.0f : x, x > 0.0f ? 1.0f : 0.0f}; }

__device__ inline ValueAndSlope gelu(float x) {
  constexpr float sqrt_half = 0.707106781186547524f, density_at_zero = 0.398942280401432678f;  // 1 / sqrt(2 pi)
  const float below = 0.5f * erfcf(-x * sqrt_half);
  // x times a density that has underflowed is 0 even at infinity.
  const float moved = fabsf(x) > 15.0f ? 0.0f : x * density_at_zero * expf(-0.5f * x * x);
  return {x * below, below + moved};
}

// x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3): (1 + tanh u) / 2 is sigmoid(2 u).
__device__ inline ValueAndSlope gelu_tanh(float x) {
  constexpr float linear = 1.59576912160573071f, cubic = linear * 0.044715f;  // 2 sqrt(2 / pi)
  // Beyond |x| = 15 the sigmoid is 0 or 1 and its slope 0; bounding x there keeps x^3 times 0 from being NaN.
  const float bounded = fmaxf(-15.0f, fminf(15.0f, x)), square = bounded * bounded;
  const float s = sigmoid(bounded * (cubic * square + linear));
  return {x * s, bounded * (3 * cubic * square + linear) * s * (1.0f - s) + s};
}

__device__ inline ValueAndSlope silu(float x) {
  const float s = sigmoid(x), value = x * s;
  // s (1 + x (1 - s)); far below zero x s is 0 and so is the slope.
  return {value, x < -100.0f ? 0.0f : value * (1.0f - s) + s};
}

// body(function) with the activation's ValueAndSlope: one branch for many elements.
template <class Body>
__device__ inline void with_activation(Activation activation, Body body) {
  switch (activation) {
    case Activation::none:
      return body([](float x) { return ValueAndSlope{x, 1.0f}; });
    case Activation::relu:
      return body([](float x) { return relu(x); });
    case Activation::gelu:
      return body([](float x) { return gelu(x); });
    case Activation::gelu_tanh:
      return body([](float x) { return gelu_tanh(x); });
    case Activation::silu:
      return body([](float x) { return silu(x); });
  }
}

}  // namespace bigmodel::cuda
