// Stands in for the compiler's <immintrin.h> when the AVX-512 and AMX sources are compiled for a processor without: AMX
// comes from amx.h, AVX-512 from SIMDe (https://github.com/simd-everywhere/simde) where BIGMODEL_SIMDE is defined.
//
// The sources ask for these macros to choose their intrinsics; the two headers must not see them, or they would take
// the instructions to be there.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(BIGMODEL_SIMDE)
#pragma push_macro("__AVX512F__")
#pragma push_macro("__AVX512BF16__")
#undef __AVX512F__
#undef __AVX512BF16__

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// Not in SIMDe 0.8.2.
static inline __m256i emulated_cvtepi32_epi16(__m512i a) {
  std::int32_t words[16];
  std::int16_t halves[16];
  std::memcpy(words, &a, sizeof words);
  for (int i = 0; i < 16; ++i) halves[i] = static_cast<std::int16_t>(words[i]);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves));
}
#define _mm512_cvtepi32_epi16 emulated_cvtepi32_epi16

static inline __m512i emulated_cvtepi8_epi32(__m128i a) {
  std::int8_t bytes[16];
  std::int32_t words[16];
  std::memcpy(bytes, &a, sizeof bytes);
  for (int i = 0; i < 16; ++i) words[i] = bytes[i];
  __m512i result;
  std::memcpy(&result, words, sizeof result);
  return result;
}
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32

// To nearest even: the only rounding that csrc asks for.
static inline __m256i emulated_cvtps_ph(__m512 a, int) {
  float values[16];
  std::memcpy(values, &a, sizeof values);
  return _mm256_set_m128i(_mm256_cvtps_ph(_mm256_loadu_ps(values + 8), 0), _mm256_cvtps_ph(_mm256_loadu_ps(values), 0));
}
#define _mm512_cvtps_ph emulated_cvtps_ph

// Two vectors to bfloat16, b's in the lower half: to nearest even, subnormal numbers to zero, as the instruction does.
static inline __m512i emulated_cvtne2ps_pbh(__m512 a, __m512 b) {
  std::uint32_t bits[32];
  std::uint16_t halves[32];
  std::memcpy(bits, &b, sizeof b);
  std::memcpy(bits + 16, &a, sizeof a);
  for (int i = 0; i < 32; ++i) {
    const std::uint32_t size = bits[i] & 0x7fffffff;
    if (size > 0x7f800000) {
      halves[i] = static_cast<std::uint16_t>(bits[i] >> 16 | 0x40);  // NaN stays one
    } else if (size < 0x00800000) {
      halves[i] = static_cast<std::uint16_t>(bits[i] >> 16 & 0x8000);
    } else {
      halves[i] = static_cast<std::uint16_t>((bits[i] + 0x7fff + (bits[i] >> 16 & 1)) >> 16);
    }
  }
  __m512i result;
  std::memcpy(&result, halves, sizeof result);
  return result;
}
#undef _mm512_cvtne2ps_pbh
#define _mm512_cvtne2ps_pbh emulated_cvtne2ps_pbh

// SIMDe's masked access touches the lanes that are masked out, which the instructions do not.
template <class Vector, class Element>
static inline Vector emulated_masked_load(unsigned mask, const void* p) {
  Element elements[16] = {};
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) std::memcpy(&elements[i], static_cast<const Element*>(p) + i, sizeof(Element));
  }
  Vector a;
  std::memcpy(&a, elements, sizeof a);
  return a;
}
template <class Element, class Vector>
static inline void emulated_masked_store(void* p, unsigned mask, const Vector& a) {
  Element elements[16];
  std::memcpy(elements, &a, sizeof elements);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) std::memcpy(static_cast<Element*>(p) + i, &elements[i], sizeof(Element));
  }
}
#undef _mm512_maskz_loadu_ps
#undef _mm512_mask_storeu_ps
#undef _mm256_maskz_loadu_epi16
#undef _mm256_mask_storeu_epi16
#define _mm512_maskz_loadu_ps(mask, p) emulated_masked_load<__m512, float>(mask, p)
#define _mm512_mask_storeu_ps(p, mask, a) emulated_masked_store<float>(p, mask, a)
#define _mm256_maskz_loadu_epi16(mask, p) emulated_masked_load<__m256i, std::int16_t>(mask, p)
#define _mm256_mask_storeu_epi16(p, mask, a) emulated_masked_store<std::int16_t>(p, mask, a)

#define _mm512_stream_ps(p, a) _mm512_store_ps(p, a)

#pragma pop_macro("__AVX512F__")
#pragma pop_macro("__AVX512BF16__")
#else
#include_next <immintrin.h>
#endif

#if defined(__AMX_BF16__)
#include "amx.h"
#endif
