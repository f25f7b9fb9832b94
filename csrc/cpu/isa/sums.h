// Sums of lanes, of several vectors of fp32 or of integers at once, as fp32.
#pragma once

#include "cpu/isa/vec.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// p[i] = the sum of v[i]'s lanes: four of them.
BIGMODEL_INLINE void store_4_sums(float* p, const F32* v) { store_sums(p, v[0], v[1], v[2], v[3]); }
BIGMODEL_INLINE void store_4_sums(float* p, const I32* v) {
  store_sums(p, to_float(v[0]), to_float(v[1]), to_float(v[2]), to_float(v[3]));
}

#if defined(__AVX512F__)

BIGMODEL_INLINE __m512 bits_of(F32 a) { return a.v; }
BIGMODEL_INLINE __m512 bits_of(I32 a) { return _mm512_castsi512_ps(a.v); }
BIGMODEL_INLINE F32 add_bits(__m512 a, __m512 b, F32) { return F32{a} + F32{b}; }
BIGMODEL_INLINE I32 add_bits(__m512 a, __m512 b, I32) {
  return I32{_mm512_castps_si512(a)} + I32{_mm512_castps_si512(b)};
}
BIGMODEL_INLINE void store_as_float(float* p, F32 a) { store(p, a); }
BIGMODEL_INLINE void store_as_float(float* p, I32 a) { store(p, to_float(a)); }

// Sixteen of them: every step halves the vectors and what is left to be added in each.
template <class V>
BIGMODEL_INLINE void store_16_sums(float* p, const V* v) {
  V pairs[8], fours[4], eights[2];
  for (int i = 0; i < 8; ++i) {
    const __m512 a = bits_of(v[2 * i]), b = bits_of(v[2 * i + 1]);
    pairs[i] = add_bits(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b), V());
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 a = bits_of(pairs[2 * i]), b = bits_of(pairs[2 * i + 1]);
    fours[i] = add_bits(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee), V());
  }
  for (int i = 0; i < 2; ++i) {
    const __m512 a = bits_of(fours[2 * i]), b = bits_of(fours[2 * i + 1]);
    eights[i] = add_bits(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd), V());
  }
  const __m512 a = bits_of(eights[0]), b = bits_of(eights[1]);
  store_as_float(p, add_bits(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd), V()));
}

#else

template <class V>
BIGMODEL_INLINE void store_16_sums(float* p, const V* v) {
  for (int i = 0; i < 16; i += 4) store_4_sums(p + i, v + i);
}

#endif

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
