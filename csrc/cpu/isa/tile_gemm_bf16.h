// bfloat16 as an Element of tile_gemm.h: a lane holds a pair of consecutive k, and one instruction adds both products
// to an fp32 sum.
#pragma once

#include "cpu/isa/vec.h"

#if defined(__AVX512BF16__) || (defined(__aarch64__) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC))
#define BIGMODEL_BF16_DOT 1
#endif

namespace bigmodel::cpu::BIGMODEL_TARGET {

struct BFloat16Pair {
  bfloat16 k[2];
};

template <>
struct Layout<bfloat16> {
  using Lane = BFloat16Pair;
  static constexpr int group = 2;
#if defined(__AMX_BF16__)
  static constexpr int k_step = 32, rows = 32;
  static constexpr bool amx = true;
#else
  static constexpr int k_step = 2, rows = tile_rows;
  static constexpr bool amx = false;
#endif
};

#if defined(BIGMODEL_BF16_DOT)

template <>
struct Multiply<bfloat16> {
  using Element = bfloat16;
};

#if defined(__AVX512BF16__)

struct Pairs {
  __m512bh v;
};

BIGMODEL_INLINE Pairs broadcast(const bfloat16* p) {
  std::int32_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return {reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits))};
}
BIGMODEL_INLINE Pairs load_lanes(const BFloat16Pair* p) { return {reinterpret_cast<__m512bh>(_mm512_loadu_si512(p))}; }
BIGMODEL_INLINE F32 multiply_add(Pairs a, Pairs b, F32 sum) { return {_mm512_dpbf16_ps(sum.v, a.v, b.v)}; }
// Pairs of the even elements of two rows, and of the odd ones.
BIGMODEL_INLINE void interleave(Pairs a, Pairs b, Pairs& even, Pairs& odd) {
  const __m512i x = reinterpret_cast<__m512i>(a.v), y = reinterpret_cast<__m512i>(b.v);
  even.v = reinterpret_cast<__m512bh>(_mm512_mask_blend_epi16(0xaaaaaaaa, x, _mm512_slli_epi32(y, 16)));
  odd.v = reinterpret_cast<__m512bh>(_mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(x, 16), y));
}

#else

struct Pairs {
  bfloat16x8_t v;
};

BIGMODEL_INLINE Pairs broadcast(const bfloat16* p) {
  std::int32_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return {vreinterpretq_bf16_s32(vdupq_n_s32(bits))};
}
BIGMODEL_INLINE Pairs load_lanes(const BFloat16Pair* p) {
  Pairs pairs;
  __builtin_memcpy(&pairs.v, p, sizeof pairs.v);
  return pairs;
}
BIGMODEL_INLINE F32 multiply_add(Pairs a, Pairs b, F32 sum) { return {vbfdotq_f32(sum.v, a.v, b.v)}; }
BIGMODEL_INLINE void interleave(Pairs a, Pairs b, Pairs& even, Pairs& odd) {
  const uint16x8_t x = vreinterpretq_u16_bf16(a.v), y = vreinterpretq_u16_bf16(b.v);
  even.v = vreinterpretq_bf16_u16(vtrn1q_u16(x, y));
  odd.v = vreinterpretq_bf16_u16(vtrn2q_u16(x, y));
}

#endif

// What lanes of pairs hold, in fp32.
BIGMODEL_INLINE void widen(Pairs pairs, F32& first, F32& second) {
  Pairs even, odd;
  interleave(Pairs{}, pairs, even, odd);  // a bfloat16 is the upper half of an fp32
  __builtin_memcpy(&first.v, &even.v, sizeof first.v);
  __builtin_memcpy(&second.v, &odd.v, sizeof second.v);
}

// The pairs that a vector of lanes holds of a row, and of its last count elements, zeros after them.
BIGMODEL_INLINE Pairs load_pairs(const bfloat16* p) { return load_lanes(reinterpret_cast<const BFloat16Pair*>(p)); }
BIGMODEL_INLINE Pairs load_last_pairs(const bfloat16* p, std::int64_t count) {
#if defined(__AVX512BF16__)
  return {reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16((__mmask32{1} << count) - 1, p))};
#else
  bfloat16 buffer[2 * F32::lanes] = {};
  for (std::int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return load_pairs(buffer);
#endif
}

#endif

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
