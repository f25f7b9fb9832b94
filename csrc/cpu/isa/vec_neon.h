// 64-bit Arm: four lanes. fp16 conversions belong to the base architecture; bf16 ones to the neon_bf16 target, and are
// shifts elsewhere.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "bigmodel/dtype.h"
#include "cpu/isa/inline.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

struct F32 {
  static constexpr int lanes = 4;
  float32x4_t v;
};
struct I32 {
  int32x4_t v;
};
struct Mask {
  uint32x4_t v;
};

BIGMODEL_INLINE F32 zero() { return {vdupq_n_f32(0.0f)}; }
BIGMODEL_INLINE void keep_in_register(F32& a) { asm("" : "+w"(a.v)); }
BIGMODEL_INLINE F32 set1(float x) { return {vdupq_n_f32(x)}; }

BIGMODEL_INLINE F32 load(const float* p) { return {vld1q_f32(p)}; }
BIGMODEL_INLINE void store(float* p, F32 a) { vst1q_f32(p, a.v); }

BIGMODEL_INLINE F32 from_bfloat16(uint16x4_t a) { return {vreinterpretq_f32_u32(vshll_n_u16(a, 16))}; }
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
BIGMODEL_INLINE uint16x4_t to_bfloat16(F32 a) { return vreinterpret_u16_bf16(vcvt_bf16_f32(a.v)); }
#else
// Round to nearest even; a NaN stays a NaN because its quiet bit is set before rounding could carry it away.
BIGMODEL_INLINE uint16x4_t to_bfloat16(F32 a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a.v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(a.v, a.v), rounded, quiet), 16);
}
#endif
BIGMODEL_INLINE F32 from_float16(uint16x4_t a) { return {vcvt_f32_f16(vreinterpret_f16_u16(a))}; }
BIGMODEL_INLINE uint16x4_t to_float16(F32 a) { return vreinterpret_u16_f16(vcvt_f16_f32(a.v)); }

BIGMODEL_INLINE F32 load(const bfloat16* p) { return from_bfloat16(vld1_u16(&p->bits)); }
BIGMODEL_INLINE F32 load(const float16* p) { return from_float16(vld1_u16(&p->bits)); }
BIGMODEL_INLINE F32 load(const std::int8_t* p) {
  std::int32_t bits;  // no more than four bytes may be read
  __builtin_memcpy(&bits, p, sizeof bits);
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bits))))))};
}
BIGMODEL_INLINE void store(bfloat16* p, F32 a) { vst1_u16(&p->bits, to_bfloat16(a)); }
BIGMODEL_INLINE void store(float16* p, F32 a) { vst1_u16(&p->bits, to_float16(a)); }

// Partial vectors go through a buffer.
template <class T>
BIGMODEL_INLINE F32 load_first(const T* p, int count) {
  T buffer[F32::lanes] = {};
  for (int i = 0; i < count; ++i) buffer[i] = p[i];
  return load(buffer);
}
template <class T>
BIGMODEL_INLINE void store_first(T* p, F32 a, int count) {
  T buffer[F32::lanes];
  store(buffer, a);
  for (int i = 0; i < count; ++i) p[i] = buffer[i];
}

template <class T>
BIGMODEL_INLINE void stream(T* p, F32 a) {
  store(p, a);
}
BIGMODEL_INLINE void stream_end() {}

BIGMODEL_INLINE F32 operator+(F32 a, F32 b) { return {vaddq_f32(a.v, b.v)}; }
BIGMODEL_INLINE F32 operator-(F32 a, F32 b) { return {vsubq_f32(a.v, b.v)}; }
BIGMODEL_INLINE F32 operator*(F32 a, F32 b) { return {vmulq_f32(a.v, b.v)}; }
BIGMODEL_INLINE F32 operator/(F32 a, F32 b) { return {vdivq_f32(a.v, b.v)}; }
BIGMODEL_INLINE F32 fma(F32 a, F32 b, F32 c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
BIGMODEL_INLINE F32 fnma(F32 a, F32 b, F32 c) { return {vfmsq_f32(c.v, a.v, b.v)}; }
// Not vmaxq and vminq, which answer NaN when either is.
BIGMODEL_INLINE F32 max(F32 a, F32 b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
BIGMODEL_INLINE F32 min(F32 a, F32 b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
BIGMODEL_INLINE F32 abs(F32 a) { return {vabsq_f32(a.v)}; }
BIGMODEL_INLINE F32 sqrt(F32 a) { return {vsqrtq_f32(a.v)}; }
BIGMODEL_INLINE F32 round(F32 a) { return {vrndnq_f32(a.v)}; }
BIGMODEL_INLINE Mask less(F32 a, F32 b) { return {vcltq_f32(a.v, b.v)}; }
BIGMODEL_INLINE F32 select(Mask m, F32 if_true, F32 if_false) { return {vbslq_f32(m.v, if_true.v, if_false.v)}; }

BIGMODEL_INLINE I32 set1_int(std::int32_t x) { return {vdupq_n_s32(x)}; }
BIGMODEL_INLINE I32 to_int(F32 a) { return {vcvtnq_s32_f32(a.v)}; }
BIGMODEL_INLINE F32 to_float(I32 a) { return {vcvtq_f32_s32(a.v)}; }
BIGMODEL_INLINE I32 as_int(F32 a) { return {vreinterpretq_s32_f32(a.v)}; }
BIGMODEL_INLINE F32 as_float(I32 a) { return {vreinterpretq_f32_s32(a.v)}; }
BIGMODEL_INLINE I32 operator+(I32 a, I32 b) { return {vaddq_s32(a.v, b.v)}; }
BIGMODEL_INLINE I32 operator-(I32 a, I32 b) { return {vsubq_s32(a.v, b.v)}; }
BIGMODEL_INLINE I32 operator*(I32 a, I32 b) { return {vmulq_s32(a.v, b.v)}; }
BIGMODEL_INLINE I32 operator&(I32 a, I32 b) { return {vandq_s32(a.v, b.v)}; }
BIGMODEL_INLINE I32 operator|(I32 a, I32 b) { return {vorrq_s32(a.v, b.v)}; }
template <int n>
BIGMODEL_INLINE I32 shift_left(I32 a) {
  return {vshlq_n_s32(a.v, n)};
}
template <int n>
BIGMODEL_INLINE I32 shift_right(I32 a) {
  return {vshrq_n_s32(a.v, n)};
}

BIGMODEL_INLINE float reduce_add(F32 a) { return vaddvq_f32(a.v); }
BIGMODEL_INLINE float reduce_max(F32 a) { return vmaxvq_f32(a.v); }

// p[0 ... 3] = the sums of a's, b's, c's and d's lanes.
BIGMODEL_INLINE void store_sums(float* p, F32 a, F32 b, F32 c, F32 d) {
  vst1q_f32(p, vpaddq_f32(vpaddq_f32(a.v, b.v), vpaddq_f32(c.v, d.v)));
}

BIGMODEL_INLINE F32 swap_pairs(F32 a) { return {vrev64q_f32(a.v)}; }

BIGMODEL_INLINE void transpose(F32 (&rows)[4]) {
  const float32x4_t even_upper = vtrn1q_f32(rows[0].v, rows[1].v), odd_upper = vtrn2q_f32(rows[0].v, rows[1].v);
  const float32x4_t even_lower = vtrn1q_f32(rows[2].v, rows[3].v), odd_lower = vtrn2q_f32(rows[2].v, rows[3].v);
  rows[0].v = vcombine_f32(vget_low_f32(even_upper), vget_low_f32(even_lower));
  rows[1].v = vcombine_f32(vget_low_f32(odd_upper), vget_low_f32(odd_lower));
  rows[2].v = vcombine_f32(vget_high_f32(even_upper), vget_high_f32(even_lower));
  rows[3].v = vcombine_f32(vget_high_f32(odd_upper), vget_high_f32(odd_lower));
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
