// Any processor: four lanes in the compiler's own vector types, conversions lane by lane. What a machine runs when
// nothing better fits; on x86 it compiles to SSE2.
#pragma once

#include <cstdint>

#include "bigmodel/dtype.h"
#include "cpu/isa/inline.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

using FloatVector = float __attribute__((vector_size(16)));
using IntVector = std::int32_t __attribute__((vector_size(16)));
using UnsignedVector = std::uint32_t __attribute__((vector_size(16)));  // in which sums may wrap around

struct F32 {
  static constexpr int lanes = 4;
  FloatVector v;
};
struct I32 {
  IntVector v;
};
struct Mask {
  IntVector v;
};

BIGMODEL_INLINE F32 zero() { return {FloatVector{}}; }
BIGMODEL_INLINE void keep_in_register(F32&) {}
BIGMODEL_INLINE F32 set1(float x) { return {FloatVector{x, x, x, x}}; }
BIGMODEL_INLINE I32 as_int(F32 a) { return {reinterpret_cast<IntVector>(a.v)}; }
BIGMODEL_INLINE F32 as_float(I32 a) { return {reinterpret_cast<FloatVector>(a.v)}; }

BIGMODEL_INLINE float bits_to_float(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }
BIGMODEL_INLINE std::uint32_t float_to_bits(float x) { return __builtin_bit_cast(std::uint32_t, x); }

BIGMODEL_INLINE float to_float(float x) { return x; }
BIGMODEL_INLINE float to_float(bfloat16 x) { return bits_to_float(std::uint32_t{x.bits} << 16); }
// Halves are scaled into place as a float: exponents differ by 127 - 15, subnormals come out right by the multiply.
BIGMODEL_INLINE float to_float(float16 x) {
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
}
BIGMODEL_INLINE float to_float(std::int8_t x) { return x; }
BIGMODEL_INLINE void from_float(float& y, float x) { y = x; }
BIGMODEL_INLINE void from_float(bfloat16& y, float x) {
  const std::uint32_t bits = float_to_bits(x);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  y.bits = std::uint16_t((is_nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
BIGMODEL_INLINE void from_float(float16& y, float x) {
  const std::uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    y.bits = std::uint16_t(sign | 0x7e00);
  } else if (magnitude >= 0x477ff000) {  // rounds to 65520 or more
    y.bits = std::uint16_t(sign | 0x7c00);
  } else if (magnitude < 0x38800000) {  // subnormal or zero: adding 0.5 lets the adder round at bit 2^-24
    y.bits = std::uint16_t(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000));
  } else {
    y.bits = std::uint16_t(sign | (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13);
  }
}

template <class T>
BIGMODEL_INLINE F32 load_first(const T* p, int count) {
  F32 a = zero();
  for (int i = 0; i < count; ++i) a.v[i] = to_float(p[i]);
  return a;
}
template <class T>
BIGMODEL_INLINE void store_first(T* p, F32 a, int count) {
  for (int i = 0; i < count; ++i) from_float(p[i], a.v[i]);
}
BIGMODEL_INLINE F32 load(const float* p) {
  F32 a;
  __builtin_memcpy(&a.v, p, sizeof a.v);
  return a;
}
BIGMODEL_INLINE void store(float* p, F32 a) { __builtin_memcpy(p, &a.v, sizeof a.v); }
template <class T>
BIGMODEL_INLINE F32 load(const T* p) {
  return load_first(p, F32::lanes);
}
template <class T>
BIGMODEL_INLINE void store(T* p, F32 a) {
  store_first(p, a, F32::lanes);
}

template <class T>
BIGMODEL_INLINE void stream(T* p, F32 a) {
  store(p, a);
}
BIGMODEL_INLINE void stream_end() {}

BIGMODEL_INLINE F32 operator+(F32 a, F32 b) { return {a.v + b.v}; }
BIGMODEL_INLINE F32 operator-(F32 a, F32 b) { return {a.v - b.v}; }
BIGMODEL_INLINE F32 operator*(F32 a, F32 b) { return {a.v * b.v}; }
BIGMODEL_INLINE F32 operator/(F32 a, F32 b) { return {a.v / b.v}; }
BIGMODEL_INLINE F32 fma(F32 a, F32 b, F32 c) { return {a.v * b.v + c.v}; }
BIGMODEL_INLINE F32 fnma(F32 a, F32 b, F32 c) { return {c.v - a.v * b.v}; }
BIGMODEL_INLINE Mask less(F32 a, F32 b) { return {a.v < b.v}; }
BIGMODEL_INLINE F32 select(Mask m, F32 if_true, F32 if_false) { return {m.v ? if_true.v : if_false.v}; }
BIGMODEL_INLINE F32 max(F32 a, F32 b) { return {a.v > b.v ? a.v : b.v}; }
BIGMODEL_INLINE F32 min(F32 a, F32 b) { return {a.v < b.v ? a.v : b.v}; }
BIGMODEL_INLINE F32 abs(F32 a) { return {reinterpret_cast<FloatVector>(as_int(a).v & 0x7fffffff)}; }
BIGMODEL_INLINE F32 sqrt(F32 a) {
  for (int i = 0; i < F32::lanes; ++i) a.v[i] = __builtin_sqrtf(a.v[i]);
  return a;
}
// Adding and subtracting 1.5 * 2^23 rounds to nearest even where |a| < 2^22, which is all that its callers pass.
BIGMODEL_INLINE F32 round(F32 a) { return {(a.v + 0x1.8p23f) - 0x1.8p23f}; }
BIGMODEL_INLINE I32 set1_int(std::int32_t x) { return {IntVector{x, x, x, x}}; }
BIGMODEL_INLINE F32 to_float(I32 a) { return {__builtin_convertvector(a.v, FloatVector)}; }
BIGMODEL_INLINE I32 to_int(F32 a) { return {__builtin_convertvector(a.v, IntVector)}; }
BIGMODEL_INLINE I32 operator+(I32 a, I32 b) { return {IntVector(UnsignedVector(a.v) + UnsignedVector(b.v))}; }
BIGMODEL_INLINE I32 operator-(I32 a, I32 b) { return {IntVector(UnsignedVector(a.v) - UnsignedVector(b.v))}; }
BIGMODEL_INLINE I32 operator*(I32 a, I32 b) { return {IntVector(UnsignedVector(a.v) * UnsignedVector(b.v))}; }
BIGMODEL_INLINE I32 operator&(I32 a, I32 b) { return {a.v & b.v}; }
BIGMODEL_INLINE I32 operator|(I32 a, I32 b) { return {a.v | b.v}; }
template <int n>
BIGMODEL_INLINE I32 shift_left(I32 a) {
  return {a.v << n};
}
template <int n>
BIGMODEL_INLINE I32 shift_right(I32 a) {
  return {a.v >> n};
}

BIGMODEL_INLINE float reduce_add(F32 a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
BIGMODEL_INLINE float reduce_max(F32 a) {
  const float even = a.v[0] > a.v[2] ? a.v[0] : a.v[2], odd = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
  return even > odd ? even : odd;
}

// p[0 ... 3] = the sums of a's, b's, c's and d's lanes.
BIGMODEL_INLINE void store_sums(float* p, F32 a, F32 b, F32 c, F32 d) {
  p[0] = reduce_add(a), p[1] = reduce_add(b), p[2] = reduce_add(c), p[3] = reduce_add(d);
}

BIGMODEL_INLINE F32 swap_pairs(F32 a) { return {FloatVector{a.v[1], a.v[0], a.v[3], a.v[2]}}; }

BIGMODEL_INLINE void transpose(F32 (&rows)[4]) {
  F32 columns[4];
  for (int i = 0; i < 4; ++i) columns[i].v = FloatVector{rows[0].v[i], rows[1].v[i], rows[2].v[i], rows[3].v[i]};
  for (int i = 0; i < 4; ++i) rows[i] = columns[i];
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
