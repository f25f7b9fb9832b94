// AVX2 with FMA and F16C: eight lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "bigmodel/dtype.h"
#include "cpu/isa/inline.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

struct F32 {
  static constexpr int lanes = 8;
  __m256 v;
};
struct I32 {
  __m256i v;
};
struct Mask {
  __m256 v;
};

BIGMODEL_INLINE F32 zero() { return {_mm256_setzero_ps()}; }
BIGMODEL_INLINE void keep_in_register(F32& a) { asm("" : "+x"(a.v)); }
BIGMODEL_INLINE F32 set1(float x) { return {_mm256_set1_ps(x)}; }

BIGMODEL_INLINE __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

BIGMODEL_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
BIGMODEL_INLINE void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
BIGMODEL_INLINE F32 load_first(const float* p, int count) { return {_mm256_maskload_ps(p, first_lanes(count))}; }
BIGMODEL_INLINE void store_first(float* p, F32 a, int count) { _mm256_maskstore_ps(p, first_lanes(count), a.v); }

// 16-bit halves of eight lanes; partial forms go through a buffer, since AVX2 masks no 16-bit access.
BIGMODEL_INLINE __m128i load_first_16(const std::uint16_t* p, int count) {
  alignas(16) std::uint16_t buffer[8] = {};
  __builtin_memcpy(buffer, p, sizeof(std::uint16_t) * count);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(buffer));
}
BIGMODEL_INLINE void store_first_16(std::uint16_t* p, __m128i a, int count) {
  alignas(16) std::uint16_t buffer[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(buffer), a);
  __builtin_memcpy(p, buffer, sizeof(std::uint16_t) * count);
}
BIGMODEL_INLINE __m128i load_16(const std::uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
BIGMODEL_INLINE void store_16(std::uint16_t* p, __m128i a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), a); }

BIGMODEL_INLINE F32 from_bfloat16(__m128i a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16))};
}
// Round to nearest even; a NaN stays a NaN because its quiet bit is set before rounding could carry it away.
BIGMODEL_INLINE __m128i to_bfloat16(F32 a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 is_nan = _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q);
  const __m256i chosen =
      _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), is_nan));
  const __m256i high = _mm256_srli_epi32(chosen, 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
BIGMODEL_INLINE F32 from_float16(__m128i a) { return {_mm256_cvtph_ps(a)}; }
BIGMODEL_INLINE __m128i to_float16(F32 a) {
  return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

BIGMODEL_INLINE F32 load(const bfloat16* p) { return from_bfloat16(load_16(&p->bits)); }
BIGMODEL_INLINE F32 load(const float16* p) { return from_float16(load_16(&p->bits)); }
BIGMODEL_INLINE F32 load_first(const bfloat16* p, int count) { return from_bfloat16(load_first_16(&p->bits, count)); }
BIGMODEL_INLINE F32 load_first(const float16* p, int count) { return from_float16(load_first_16(&p->bits, count)); }
BIGMODEL_INLINE void store(bfloat16* p, F32 a) { store_16(&p->bits, to_bfloat16(a)); }
BIGMODEL_INLINE void store(float16* p, F32 a) { store_16(&p->bits, to_float16(a)); }
BIGMODEL_INLINE void store_first(bfloat16* p, F32 a, int count) { store_first_16(&p->bits, to_bfloat16(a), count); }
BIGMODEL_INLINE void store_first(float16* p, F32 a, int count) { store_first_16(&p->bits, to_float16(a), count); }

BIGMODEL_INLINE F32 from_int8(__m128i a) { return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(a))}; }
BIGMODEL_INLINE F32 load(const std::int8_t* p) {
  return from_int8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
BIGMODEL_INLINE F32 load_first(const std::int8_t* p, int count) {
  alignas(8) std::int8_t buffer[8] = {};
  __builtin_memcpy(buffer, p, count);
  return load(buffer);
}

BIGMODEL_INLINE void stream(float* p, F32 a) { _mm256_stream_ps(p, a.v); }
BIGMODEL_INLINE void stream(bfloat16* p, F32 a) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_bfloat16(a)); }
BIGMODEL_INLINE void stream(float16* p, F32 a) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_float16(a)); }
BIGMODEL_INLINE void stream_end() { _mm_sfence(); }

BIGMODEL_INLINE F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
BIGMODEL_INLINE F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
BIGMODEL_INLINE F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
BIGMODEL_INLINE F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
BIGMODEL_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
BIGMODEL_INLINE F32 fnma(F32 a, F32 b, F32 c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
BIGMODEL_INLINE F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
BIGMODEL_INLINE F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
BIGMODEL_INLINE F32 abs(F32 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
BIGMODEL_INLINE F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.v)}; }
BIGMODEL_INLINE F32 round(F32 a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
BIGMODEL_INLINE Mask less(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
BIGMODEL_INLINE F32 select(Mask m, F32 if_true, F32 if_false) { return {_mm256_blendv_ps(if_false.v, if_true.v, m.v)}; }

BIGMODEL_INLINE I32 set1_int(std::int32_t x) { return {_mm256_set1_epi32(x)}; }
BIGMODEL_INLINE I32 to_int(F32 a) { return {_mm256_cvtps_epi32(a.v)}; }
BIGMODEL_INLINE F32 to_float(I32 a) { return {_mm256_cvtepi32_ps(a.v)}; }
BIGMODEL_INLINE I32 as_int(F32 a) { return {_mm256_castps_si256(a.v)}; }
BIGMODEL_INLINE F32 as_float(I32 a) { return {_mm256_castsi256_ps(a.v)}; }
BIGMODEL_INLINE I32 operator+(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
BIGMODEL_INLINE I32 operator-(I32 a, I32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
BIGMODEL_INLINE I32 operator*(I32 a, I32 b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
BIGMODEL_INLINE I32 operator&(I32 a, I32 b) { return {_mm256_and_si256(a.v, b.v)}; }
BIGMODEL_INLINE I32 operator|(I32 a, I32 b) { return {_mm256_or_si256(a.v, b.v)}; }
template <int n>
BIGMODEL_INLINE I32 shift_left(I32 a) {
  return {_mm256_slli_epi32(a.v, n)};
}
template <int n>
BIGMODEL_INLINE I32 shift_right(I32 a) {
  return {_mm256_srai_epi32(a.v, n)};
}

BIGMODEL_INLINE float reduce_add(F32 a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
BIGMODEL_INLINE float reduce_max(F32 a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

// p[0 ... 3] = the sums of a's, b's, c's and d's lanes.
BIGMODEL_INLINE void store_sums(float* p, F32 a, F32 b, F32 c, F32 d) {
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c.v, d.v), _mm256_unpackhi_ps(c.v, d.v));
  const __m256 abcd = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}

BIGMODEL_INLINE F32 swap_pairs(F32 a) { return {_mm256_permute_ps(a.v, 0xb1)}; }

BIGMODEL_INLINE void transpose(F32 (&rows)[8]) {
  __m256 pairs[8], quads[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i].v = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    rows[i + 4].v = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
