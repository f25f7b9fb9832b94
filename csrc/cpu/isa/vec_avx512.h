// AVX-512 (F, BW, DQ, VL): sixteen lanes, partial vectors by mask.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "bigmodel/dtype.h"
#include "cpu/isa/inline.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

struct F32 {
  static constexpr int lanes = 16;
  __m512 v;
};
struct I32 {
  __m512i v;
};
struct Mask {
  __mmask16 v;
};

BIGMODEL_INLINE F32 zero() { return {_mm512_setzero_ps()}; }
BIGMODEL_INLINE void keep_in_register(F32&) {}  // with 32 registers it stays there
BIGMODEL_INLINE F32 set1(float x) { return {_mm512_set1_ps(x)}; }

BIGMODEL_INLINE __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }

BIGMODEL_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
BIGMODEL_INLINE void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
BIGMODEL_INLINE F32 load_first(const float* p, int count) { return {_mm512_maskz_loadu_ps(first_lanes(count), p)}; }
BIGMODEL_INLINE void store_first(float* p, F32 a, int count) { _mm512_mask_storeu_ps(p, first_lanes(count), a.v); }

BIGMODEL_INLINE __m256i load_16(const std::uint16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
BIGMODEL_INLINE void store_16(std::uint16_t* p, __m256i a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
BIGMODEL_INLINE __m256i load_first_16(const std::uint16_t* p, int count) {
  return _mm256_maskz_loadu_epi16(first_lanes(count), p);
}
BIGMODEL_INLINE void store_first_16(std::uint16_t* p, __m256i a, int count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), a);
}

BIGMODEL_INLINE F32 from_bfloat16(__m256i a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16))};
}
// Round to nearest even; a NaN stays a NaN because its quiet bit is set before rounding could carry it away. The
// conversion instruction of AVX512-BF16 does the same, but would turn subnormal numbers into zero.
BIGMODEL_INLINE __m256i to_bfloat16(F32 a) {
#if defined(__AVX512BF16__)
  constexpr int subnormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask(a.v, subnormal) == 0, true)) {
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v));
  }
#endif
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i chosen = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
}
BIGMODEL_INLINE F32 from_float16(__m256i a) { return {_mm512_cvtph_ps(a)}; }
BIGMODEL_INLINE __m256i to_float16(F32 a) {
  return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

BIGMODEL_INLINE F32 load(const bfloat16* p) { return from_bfloat16(load_16(&p->bits)); }
BIGMODEL_INLINE F32 load(const float16* p) { return from_float16(load_16(&p->bits)); }
BIGMODEL_INLINE F32 load_first(const bfloat16* p, int count) { return from_bfloat16(load_first_16(&p->bits, count)); }
BIGMODEL_INLINE F32 load_first(const float16* p, int count) { return from_float16(load_first_16(&p->bits, count)); }
BIGMODEL_INLINE void store(bfloat16* p, F32 a) { store_16(&p->bits, to_bfloat16(a)); }
BIGMODEL_INLINE void store(float16* p, F32 a) { store_16(&p->bits, to_float16(a)); }
BIGMODEL_INLINE void store_first(bfloat16* p, F32 a, int count) { store_first_16(&p->bits, to_bfloat16(a), count); }
BIGMODEL_INLINE void store_first(float16* p, F32 a, int count) { store_first_16(&p->bits, to_float16(a), count); }

BIGMODEL_INLINE F32 from_int8(__m128i a) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(a))}; }
BIGMODEL_INLINE F32 load(const std::int8_t* p) {
  return from_int8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
BIGMODEL_INLINE F32 load_first(const std::int8_t* p, int count) {
  alignas(16) std::int8_t buffer[16] = {};
  __builtin_memcpy(buffer, p, count);
  return load(buffer);
}

BIGMODEL_INLINE void stream(float* p, F32 a) { _mm512_stream_ps(p, a.v); }
BIGMODEL_INLINE void stream(bfloat16* p, F32 a) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bfloat16(a)); }
BIGMODEL_INLINE void stream(float16* p, F32 a) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_float16(a)); }
BIGMODEL_INLINE void stream_end() { _mm_sfence(); }

BIGMODEL_INLINE F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
BIGMODEL_INLINE F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
BIGMODEL_INLINE F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
BIGMODEL_INLINE F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
BIGMODEL_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
BIGMODEL_INLINE F32 fnma(F32 a, F32 b, F32 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
BIGMODEL_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
BIGMODEL_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
BIGMODEL_INLINE F32 abs(F32 a) { return {_mm512_abs_ps(a.v)}; }
BIGMODEL_INLINE F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }
BIGMODEL_INLINE F32 round(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
BIGMODEL_INLINE Mask less(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
BIGMODEL_INLINE F32 select(Mask m, F32 if_true, F32 if_false) {
  return {_mm512_mask_blend_ps(m.v, if_false.v, if_true.v)};
}

BIGMODEL_INLINE I32 set1_int(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
BIGMODEL_INLINE I32 to_int(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
BIGMODEL_INLINE F32 to_float(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
BIGMODEL_INLINE I32 as_int(F32 a) { return {_mm512_castps_si512(a.v)}; }
BIGMODEL_INLINE F32 as_float(I32 a) { return {_mm512_castsi512_ps(a.v)}; }
BIGMODEL_INLINE I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
BIGMODEL_INLINE I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
BIGMODEL_INLINE I32 operator*(I32 a, I32 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
BIGMODEL_INLINE I32 operator&(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
BIGMODEL_INLINE I32 operator|(I32 a, I32 b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int n>
BIGMODEL_INLINE I32 shift_left(I32 a) {
  return {_mm512_slli_epi32(a.v, n)};
}
template <int n>
BIGMODEL_INLINE I32 shift_right(I32 a) {
  return {_mm512_srai_epi32(a.v, n)};
}

BIGMODEL_INLINE __m256 upper_half(F32 a) { return _mm512_extractf32x8_ps(a.v, 1); }
BIGMODEL_INLINE float reduce_add(F32 a) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), upper_half(a));
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
BIGMODEL_INLINE float reduce_max(F32 a) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a.v), upper_half(a));
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

// p[0 ... 3] = the sums of a's, b's, c's and d's lanes.
BIGMODEL_INLINE void store_sums(float* p, F32 a, F32 b, F32 c, F32 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
  const F32 abcd = {_mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee))};
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd.v), upper_half(abcd));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

BIGMODEL_INLINE F32 swap_pairs(F32 a) { return {_mm512_shuffle_ps(a.v, a.v, 0xb1)}; }

// Four steps: pairs and quads within blocks of four rows, then 128-bit blocks between rows.
BIGMODEL_INLINE void transpose(F32 (&rows)[16]) {
  __m512 pairs[16], quads[16], blocks[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  // quads[4 r + c], block b: column 4 b + c of rows 4 r to 4 r + 3.
  for (int c = 0; c < 4; ++c) {
    for (int half = 0; half < 2; ++half) {
      const __m512 upper = quads[8 * half + c], lower = quads[8 * half + 4 + c];
      blocks[8 * half + c] = _mm512_shuffle_f32x4(upper, lower, 0x88);      // b = 0 and 2
      blocks[8 * half + 4 + c] = _mm512_shuffle_f32x4(upper, lower, 0xdd);  // b = 1 and 3
    }
  }
  for (int c = 0; c < 4; ++c) {
    rows[c].v = _mm512_shuffle_f32x4(blocks[c], blocks[8 + c], 0x88);
    rows[8 + c].v = _mm512_shuffle_f32x4(blocks[c], blocks[8 + c], 0xdd);
    rows[4 + c].v = _mm512_shuffle_f32x4(blocks[4 + c], blocks[12 + c], 0x88);
    rows[12 + c].v = _mm512_shuffle_f32x4(blocks[4 + c], blocks[12 + c], 0xdd);
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
