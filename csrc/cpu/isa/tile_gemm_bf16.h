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
#else
  static constexpr int k_step = 2, rows = tile_rows;
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

#endif

#endif

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
