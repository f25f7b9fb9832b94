// Elementary functions, written once over F32 for every target.
#pragma once

#include "cpu/isa/vec.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

inline constexpr float log2_e = 1.44269504088896341f;
inline constexpr float ln_2 = 0.693147180559945309f;
inline constexpr float infinity = __builtin_inff();

// 2^x, relative error below 2 units in the last place; 0 for x < -126 (subnormal results flush), at most 2^127.99 for
// large x, NaN for NaN.
BIGMODEL_INLINE F32 exp2(F32 x) {
  const F32 lowest = set1(-126.0f);
  const Mask underflow = less(x, lowest);
  x = min(set1(127.99f), max(lowest, x));
  const F32 whole = round(x);
  const F32 f = x - whole;  // in [-1/2, 1/2]
  // Taylor terms of exp(f ln 2), the last ones adjusted to the interval.
  F32 p = set1(1.535336188319500e-4f);
  p = fma(p, f, set1(1.339887440266574e-3f));
  p = fma(p, f, set1(9.618437357674640e-3f));
  p = fma(p, f, set1(5.550332471162809e-2f));
  p = fma(p, f, set1(2.402264791363012e-1f));
  p = fma(p, f, set1(6.931472028550421e-1f));
  p = fma(p, f, set1(1.0f));
  return select(underflow, zero(), as_float(as_int(p) + shift_left<23>(to_int(whole))));
}

BIGMODEL_INLINE F32 exp(F32 x) { return exp2(x * set1(log2_e)); }

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
