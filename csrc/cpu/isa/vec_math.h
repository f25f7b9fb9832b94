// Elementary functions, written once over F32 for every target. Error bounds are those that tests/cpp holds them to.
//
// Coefficients are minimax fits (of the result's relative error, unless said otherwise), each rounded to fp32 before
// the next was fitted.
#pragma once

#include "cpu/isa/vec.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

inline constexpr float log2_e = 1.44269504088896341f;
inline constexpr float ln_2 = 0.693147180559945309f;
inline constexpr float infinity = __builtin_inff();

// coefficients[0] + coefficients[1] x + ..., by Horner's rule.
template <int count>
BIGMODEL_INLINE F32 polynomial(F32 x, const float (&coefficients)[count]) {
  F32 sum = set1(coefficients[count - 1]);
#pragma GCC unroll 16
  for (int i = count - 2; i >= 0; --i) sum = fma(sum, x, set1(coefficients[i]));
  return sum;
}

BIGMODEL_INLINE F32 copy_sign(F32 magnitude, F32 sign) {
  return as_float(as_int(magnitude) | (as_int(sign) & set1_int(INT32_MIN)));
}

// 2^x within 1.5 units in the last place for -126 <= x < 127.5; 0 below -127, infinity above, NaN for NaN.
//
// The inner loop of softmax. Adding 1.5 * 2^23 rounds x to a whole number and leaves it in the low bits of the sum,
// with the bias of the exponent already added: one shift makes the power of two, and x = -127 makes it zero.
BIGMODEL_INLINE F32 exp2(F32 x) {
  constexpr float shift = 0x1.8p23f + 127.0f;
  x = min(set1(128.0f), max(set1(-127.0f), x));
  const F32 shifted = x + set1(shift);
  const F32 fraction = x - (shifted - set1(shift));  // in [-1/2, 1/2]
  const F32 power = as_float(shift_left<23>(as_int(shifted)));
  return power * polynomial(fraction, {1.0f, 0x1.62e430p-1f, 0x1.ebfbdcp-3f, 0x1.c6af7cp-5f, 0x1.3b2de0p-7f,
                                       0x1.5f082ep-10f, 0x1.416b52p-13f});
}

// 2^x of several vectors, for x <= 127, within a relative error of 9.7e-8 (degree 5; an ulp of fp32 is 1.2e-7)
// or 2.8e-6 (degree 4; of fp16, 9.8e-4): step by step, since one chain of dependent operations is too long for the
// schedulers to find work beyond it. The coefficients are those of the least largest relative error with 2^0 = 1, from
// a linear program over 4,001 points.
template <int degree, int count>
BIGMODEL_INLINE void exp2_each(F32 (&x)[count]) {
  static_assert(degree == 4 || degree == 5);
  constexpr float shift = 0x1.8p23f + 127.0f;
  constexpr float coefficients[2][6] = {
      {1.0f, 0x1.62e12cp-1f, 0x1.ec037ep-3f, 0x1.c9fc30p-5f, 0x1.3a0168p-7f},
      {1.0f, 0x1.62e42ap-1f, 0x1.ebf9b6p-3f, 0x1.c6b6b8p-5f, 0x1.3cec3ep-7f, 0x1.5becc4p-10f}};
  F32 power[count], sum[count];
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) {
    x[i] = max(set1(-127.0f), x[i]);
    power[i] = x[i] + set1(shift);
    x[i] = x[i] - (power[i] - set1(shift));
    sum[i] = set1(coefficients[degree - 4][degree]);
  }
#pragma GCC unroll 8
  for (int term = degree - 1; term >= 0; --term) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) sum[i] = fma(sum[i], x[i], set1(coefficients[degree - 4][term]));
  }
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) x[i] = as_float(shift_left<23>(as_int(power[i]))) * sum[i];
}

// e^x = 2^whole (1 + excess): ln 2 is subtracted in two parts, the first so short that whole * ln_2_high is exact.
struct Exponential {
  F32 whole, excess;
};
BIGMODEL_INLINE Exponential exponential(F32 x) {
  constexpr float ln_2_high = 0x1.63p-1f, ln_2_low = -0x1.bd0106p-13f;
  const F32 whole = round(x * set1(log2_e));
  const F32 r = fnma(whole, set1(ln_2_low), fnma(whole, set1(ln_2_high), x));
  const F32 p = polynomial(r, {0x1.fffffep-2f, 0x1.5554b4p-3f, 0x1.5556f2p-5f, 0x1.122560p-7f, 0x1.6b9caap-10f});
  return {whole, fma(r * r, p, r)};
}

// e^x - 1 within 2.5 units in the last place, for -87 <= x <= 87.
BIGMODEL_INLINE F32 expm1_bounded(F32 x) {
  const Exponential e = exponential(x);
  const F32 power = as_float(shift_left<23>(to_int(e.whole) + set1_int(127)));
  return fma(power, e.excess, power - set1(1.0f));
}

// e^x within 1.5 units in the last place; 0 below the smallest normal number, infinity above the largest, NaN for NaN.
BIGMODEL_INLINE F32 exp(F32 x) {
  const F32 lowest = set1(-0x1.5d589ep6f), highest = set1(0x1.62e42ep6f);
  const Exponential e = exponential(min(highest, max(lowest, x)));
  const F32 y = as_float(as_int(e.excess + set1(1.0f)) + shift_left<23>(to_int(e.whole)));
  return select(less(x, lowest), zero(), select(less(highest, x), set1(infinity), y));
}

// Within 2.5 units in the last place for every x: tanh |x| = (e^2|x| - 1) / (e^2|x| + 1).
BIGMODEL_INLINE F32 tanh(F32 x) {
  const F32 bounded = min(set1(10.0f), abs(x));
  const F32 e = expm1_bounded(bounded + bounded);
  return copy_sign(e / (e + set1(2.0f)), x);
}

// The normal distribution Phi(x) = (1 + erf(x / sqrt 2)) / 2, close where it is small too: within 6 units in the last
// place above -1 and 60 down to -5.5, falling to 0 beyond. Phi(-|x|) = 2^-q(|x|) with a polynomial for q, which is
// smooth and nearly quadratic, fitted up to 5.5 for an error that may grow as q does. Its even and odd terms are two
// chains, since one is too long for the schedulers.
BIGMODEL_INLINE F32 normal_distribution(F32 x) {
  const F32 a = min(set1(13.0f), abs(x)), square = a * a;
  const F32 even =
      polynomial(square, {1.0f, 0x1.d639bap-2f, -0x1.cc609ep-8f, 0x1.062346p-12f, 0x1.429846p-17f, 0x1.a4ee38p-26f});
  const F32 odd =
      polynomial(square, {0x1.26aeep+0f, 0x1.ae0648p-5f, 0x1.08e52ep-14f, -0x1.1decbp-14f, -0x1.8d3bbcp-21f});
  F32 tail[1] = {zero() - fma(odd, a, even)};
  exp2_each<5>(tail);
  return select(less(x, zero()), tail[0], set1(1.0f) - tail[0]);
}

// Natural logarithm within 1.5 units in the last place; -infinity for 0, NaN below 0. Subnormals count as 0.
BIGMODEL_INLINE F32 log(F32 x) {
  constexpr float ln_2_high = 0x1.63p-1f, ln_2_low = -0x1.bd0106p-13f;
  constexpr std::int32_t sqrt_half = 0x3f3504f3;  // the bits of sqrt(1/2): x = 2^whole m with m in [sqrt(1/2), sqrt 2)
  const I32 bits = as_int(x) - set1_int(sqrt_half);
  const F32 whole = to_float(shift_right<23>(bits));
  const F32 f = as_float((bits & set1_int(0x7fffff)) + set1_int(sqrt_half)) - set1(1.0f);
  const F32 p = polynomial(f, {0x1.555554p-2f, -0x1.000226p-2f, 0x1.99a01cp-3f, -0x1.54728ap-3f, 0x1.22d92ep-3f,
                               -0x1.0d8242p-3f, 0x1.055ec6p-3f, -0x1.38c9dep-4f});
  const F32 square = f * f;
  F32 y = fma(whole, set1(ln_2_low), square * (f * p));
  y = fma(whole, set1(ln_2_high), f + fnma(set1(0.5f), square, y));
  y = select(less(x, set1(0x1p-126f)), set1(-infinity), y);
  y = select(less(x, zero()), set1(__builtin_nanf("")), y);
  return select(less(x, set1(infinity)), y, x);  // infinity and NaN return themselves
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
