// Dot products of 16-bit integers: twice the products of an fp32 multiply-add in one instruction.
//
// I16 holds 2 * lanes of them. dot_pairs(a, b, sum) adds a[2i] b[2i] + a[2i + 1] b[2i + 1] to lane i of an I32.
// load_interleaved makes such pairs of two rows, a column's from both; put_in_order brings the sums of its two halves
// into the order of the columns.
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
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
  first = widened(_mm256_unpacklo_epi8(a, b));
  second = widened(_mm256_unpackhi_epi8(a, b));
}
BIGMODEL_INLINE void put_in_order(I32& first, I32& second) {
  const __m512i a = first.v, b = second.v;
  first.v = _mm512_shuffle_i64x2(a, b, 0x44);
  second.v = _mm512_shuffle_i64x2(a, b, 0xee);
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
BIGMODEL_INLINE void put_in_order(I32&, I32&) {}
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
BIGMODEL_INLINE void put_in_order(I32&, I32&) {}
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
