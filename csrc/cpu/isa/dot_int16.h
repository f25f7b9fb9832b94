// Dot products of 16-bit integers: twice the products of an fp32 multiply-add in one instruction.
//
// I16 holds 2 * lanes of them. dot_pairs(a, b, sum) adds a[2i] b[2i] + a[2i + 1] b[2i + 1] to lane i of an I32.
#pragma once

#include "cpu/isa/vec.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

inline constexpr int int16_lanes = 2 * lanes;

#if defined(__AVX512F__)

inline constexpr bool has_int16_dots = true;
struct I16 {
  __m512i v;
};
BIGMODEL_INLINE I16 load_int16(const std::int16_t* p) { return {_mm512_loadu_si512(p)}; }
BIGMODEL_INLINE I16 widened(__m256i bytes) { return {_mm512_cvtepi8_epi16(bytes)}; }
BIGMODEL_INLINE I16 load_int16(const std::int8_t* p) {
  return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
BIGMODEL_INLINE I16 set1_pair(std::int32_t pair) { return {_mm512_set1_epi32(pair)}; }
BIGMODEL_INLINE void load_interleaved(const std::int8_t* p, const std::int8_t* q, I16& first, I16& second) {
  alignas(64) static constexpr std::uint16_t order[2][32] = {
      {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
      {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
       24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
  const __m512i a = load_int16(p).v, b = load_int16(q).v;
  first.v = _mm512_permutex2var_epi16(a, _mm512_load_si512(order[0]), b);
  second.v = _mm512_permutex2var_epi16(a, _mm512_load_si512(order[1]), b);
}
#if defined(__AVX512VNNI__)
// In place: GCC would copy every sum to another register and back.
BIGMODEL_INLINE I32 dot_pairs(I16 a, I16 b, I32 sum) {
  sum.v = _mm512_dpwssd_epi32(sum.v, a.v, b.v);
  asm("" : "+v"(sum.v));
  return sum;
}
#else
BIGMODEL_INLINE I32 dot_pairs(I16 a, I16 b, I32 sum) { return sum + I32{_mm512_madd_epi16(a.v, b.v)}; }
#endif
BIGMODEL_INLINE void keep_in_register(I16&) {}

#elif defined(__AVX2__)

inline constexpr bool has_int16_dots = true;
struct I16 {
  __m256i v;
};
BIGMODEL_INLINE I16 load_int16(const std::int16_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
BIGMODEL_INLINE I16 widened(__m128i bytes) { return {_mm256_cvtepi8_epi16(bytes)}; }
BIGMODEL_INLINE I16 load_int16(const std::int8_t* p) {
  return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
BIGMODEL_INLINE I16 set1_pair(std::int32_t pair) { return {_mm256_set1_epi32(pair)}; }
BIGMODEL_INLINE void load_interleaved(const std::int8_t* p, const std::int8_t* q, I16& first, I16& second) {
  const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
  first = widened(_mm_unpacklo_epi8(a, b));
  second = widened(_mm_unpackhi_epi8(a, b));
}
// Products are added at once and in this order: GCC would form them all first, and have no registers left for the sums.
BIGMODEL_INLINE I32 dot_pairs(I16 a, I16 b, I32 sum) {
  sum = sum + I32{_mm256_madd_epi16(a.v, b.v)};
  asm volatile("" : "+x"(sum.v));
  return sum;
}
BIGMODEL_INLINE void keep_in_register(I16& a) { asm("" : "+x"(a.v)); }

#else

inline constexpr bool has_int16_dots = false;  // works, and fp32 is faster
struct I16 {
  std::int16_t v[int16_lanes];
};
template <class T>
BIGMODEL_INLINE I16 load_int16(const T* p) {
  I16 a;
  for (int i = 0; i < int16_lanes; ++i) a.v[i] = p[i];
  return a;
}
BIGMODEL_INLINE I16 set1_pair(std::int32_t pair) {
  I16 a;
  for (int i = 0; i < int16_lanes; ++i) a.v[i] = std::int16_t(i % 2 ? pair >> 16 : pair & 0xffff);
  return a;
}
BIGMODEL_INLINE void load_interleaved(const std::int8_t* p, const std::int8_t* q, I16& first, I16& second) {
  for (int i = 0; i < lanes; ++i) {
    first.v[2 * i] = p[i], first.v[2 * i + 1] = q[i];
    second.v[2 * i] = p[lanes + i], second.v[2 * i + 1] = q[lanes + i];
  }
}
BIGMODEL_INLINE I32 dot_pairs(const I16& a, const I16& b, I32 sum) {
  std::int32_t dots[lanes];
  for (int i = 0; i < lanes; ++i) dots[i] = a.v[2 * i] * b.v[2 * i] + a.v[2 * i + 1] * b.v[2 * i + 1];
  I32 more;
  __builtin_memcpy(&more.v, dots, sizeof dots);
  return sum + more;
}
BIGMODEL_INLINE void keep_in_register(I16&) {}

#endif

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
