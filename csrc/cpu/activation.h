// Activations and their derivatives, each formula written once over F32.
//
// gelu is x Phi(x) with the normal distribution Phi, gelu_tanh its approximation by tanh (Hendrycks and Gimpel, 2016);
// silu is x sigmoid(x) (Elfwing et al., 2017).
#pragma once

#include "bigmodel/activation.h"
#include "cpu/isa/vec_math.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// A function's value and derivative at one point: the expensive part of both is the same.
struct ValueAndSlope {
  F32 value, slope;
};

BIGMODEL_INLINE F32 sigmoid(F32 x) { return set1(1.0f) / (set1(1.0f) + exp(zero() - x)); }

struct Identity {};
struct Relu {};
struct Gelu {};
struct GeluTanh {};
struct Silu {};

BIGMODEL_INLINE F32 value(Identity, F32 x) { return x; }
BIGMODEL_INLINE ValueAndSlope value_and_slope(Identity, F32 x) { return {x, set1(1.0f)}; }

// max(0, x) keeps a NaN of x, as torch does.
BIGMODEL_INLINE F32 value(Relu, F32 x) { return max(zero(), x); }
BIGMODEL_INLINE ValueAndSlope value_and_slope(Relu, F32 x) {
  return {max(zero(), x), select(less(zero(), x), set1(1.0f), zero())};
}

BIGMODEL_INLINE F32 value(Gelu, F32 x) { return x * normal_distribution(x); }
template <int degree>
BIGMODEL_INLINE ValueAndSlope gelu_and_slope(F32 x, F32 below) {
  constexpr float density_at_zero = 0.398942280401432678f;  // 1 / sqrt(2 pi)
  F32 power[1] = {x * x * set1(-0.5f * log2_e)};
  exp2_each<degree>(power);
  // x times a density that has underflowed is 0 even at infinity.
  const F32 moved = select(less(set1(15.0f), abs(x)), zero(), x * set1(density_at_zero) * power[0]);
  return {x * below, below + moved};
}
BIGMODEL_INLINE ValueAndSlope value_and_slope(Gelu, F32 x) { return gelu_and_slope<5>(x, normal_distribution(x)); }

// gelu_tanh(x) = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3): (1 + tanh u) / 2 is sigmoid(2 u).
inline constexpr float gelu_tanh_linear = 1.59576912160573071f;  // 2 sqrt(2 / pi)
inline constexpr float gelu_tanh_cubic = gelu_tanh_linear * 0.044715f;
BIGMODEL_INLINE F32 value(GeluTanh, F32 x) {
  return x * sigmoid(x * fma(set1(gelu_tanh_cubic) * x, x, set1(gelu_tanh_linear)));
}
BIGMODEL_INLINE ValueAndSlope value_and_slope(GeluTanh, F32 x) {
  // Beyond |x| = 15 the sigmoid is 0 or 1 and its slope 0; bounding x there keeps x^3 times 0 from being NaN.
  const F32 bounded = max(set1(-15.0f), min(set1(15.0f), x));
  const F32 square = bounded * bounded;
  const F32 s = sigmoid(bounded * fma(set1(gelu_tanh_cubic), square, set1(gelu_tanh_linear)));
  const F32 inner_slope = fma(set1(3 * gelu_tanh_cubic), square, set1(gelu_tanh_linear));
  return {x * s, fma(bounded * inner_slope, s * (set1(1.0f) - s), s)};
}

BIGMODEL_INLINE F32 value(Silu, F32 x) { return x * sigmoid(x); }
BIGMODEL_INLINE ValueAndSlope value_and_slope(Silu, F32 x) {
  const F32 s = sigmoid(x), value = x * s;
  // s (1 + x (1 - s)); far below zero x s is 0 and so is the slope.
  return {value, select(less(x, set1(-100.0f)), zero(), fma(value, set1(1.0f) - s, s))};
}

// The normal distribution for results that are rounded to bfloat16, formed as in vec_math.h: within a relative error of
// 2^-12 above -4.5, growing to 2^-6 at -6.
BIGMODEL_INLINE F32 rough_normal_distribution(F32 x) {
  const F32 a = min(set1(13.0f), abs(x)), square = a * a;
  const F32 even = polynomial(square, {1.0f, 0x1.dcd00ep-2f, -0x1.63d39ap-8f});
  const F32 odd = polynomial(square, {0x1.261998p+0f, 0x1.808cc8p-5f, 0x1.259f4cp-12f});
  F32 tail[1] = {zero() - fma(odd, a, even)};
  exp2_each<4>(tail);
  return select(less(x, zero()), tail[0], set1(1.0f) - tail[0]);
}

// Value, and value and slope, for results that are stored as T.
template <class T, class Formula>
BIGMODEL_INLINE F32 value_for(Formula formula, F32 x) {
  if constexpr (is_same<T, bfloat16> && is_same<Formula, Gelu>) {
    return x * rough_normal_distribution(x);
  } else {
    return value(formula, x);
  }
}
template <class T, class Formula>
BIGMODEL_INLINE ValueAndSlope value_and_slope_for(Formula formula, F32 x) {
  if constexpr (is_same<T, bfloat16> && is_same<Formula, Gelu>) {
    return gelu_and_slope<4>(x, rough_normal_distribution(x));
  } else {
    return value_and_slope(formula, x);
  }
}

// Calls body with the formula of an activation.
template <class Body>
BIGMODEL_INLINE void with_activation(Activation activation, Body body) {
  switch (activation) {
    case Activation::none:
      return body(Identity{});
    case Activation::relu:
      return body(Relu{});
    case Activation::gelu:
      return body(Gelu{});
    case Activation::gelu_tanh:
      return body(GeluTanh{});
    case Activation::silu:
      return body(Silu{});
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
