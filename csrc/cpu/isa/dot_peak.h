// The dot-product instructions in independent chains: what peak.cpp counts where the target has them.
#pragma once

#include "cpu/isa/tile_gemm.h"

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#define BIGMODEL_INT8_DOT 1
#endif

namespace bigmodel::cpu::BIGMODEL_TARGET {

// As many as hide the instruction's latency (5 cycles times two a cycle, at most) and leave registers for the operands.
inline constexpr int dot_chains = 12;

// rounds of bf16 products added to fp32 sums; returns the floating-point operations done, 0 without such instructions.
BIGMODEL_INLINE std::int64_t bf16_dot_rounds(std::int64_t rounds, float* sink) {
#if defined(__AMX_BF16__)
  // 1.0 in bf16 everywhere: sums stay far below overflow, and are no zeros that a processor could pass over.
  std::uint16_t ones[amx_rows * 32];
  for (int i = 0; i < amx_rows * 32; ++i) ones[i] = 0x3f80;
  alignas(64) float sums[amx_rows * 16];
  amx_configure(amx_rows, amx_rows);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  __asm__ volatile("" : : "r"(ones) : "memory");
  _tile_loadd(4, ones, 64);
  _tile_loadd(5, ones, 64);
  _tile_loadd(6, ones, 64);
  _tile_loadd(7, ones, 64);
  for (std::int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_release();
  __asm__ volatile("" : : "r"(sums) : "memory");
  *sink += sums[0];
  return rounds * 4 * 2 * amx_rows * amx_rows * 32;
#elif defined(BIGMODEL_BF16_DOT)
  BFloat16Pair one[lanes];
  for (int lane = 0; lane < lanes; ++lane) one[lane].k[0] = one[lane].k[1] = {0x3f80};
  const Pairs lhs = load_lanes(one), rhs = broadcast(one[0].k);
  F32 sum[dot_chains];
  for (int chain = 0; chain < dot_chains; ++chain) sum[chain] = zero();
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int chain = 0; chain < dot_chains; ++chain) sum[chain] = multiply_add(lhs, rhs, sum[chain]);
  }
  float sums[lanes];
  for (int chain = 0; chain < dot_chains; ++chain) {
    store(sums, sum[chain]);
    *sink += sums[0];
  }
  return rounds * dot_chains * lanes * 4;
#else
  (void)rounds, (void)sink;
  return 0;
#endif
}

// rounds of int8 products added to int32 sums; returns the operations done, 0 without such instructions.
BIGMODEL_INLINE std::int64_t int8_dot_rounds(std::int64_t rounds, float* sink) {
#if defined(BIGMODEL_INT8_DOT)
  const __m512i lhs = _mm512_set1_epi8(1), rhs = _mm512_set1_epi8(1);
  __m512i sum[dot_chains];
  for (int chain = 0; chain < dot_chains; ++chain) sum[chain] = _mm512_setzero_si512();
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int chain = 0; chain < dot_chains; ++chain) sum[chain] = _mm512_dpbusd_epi32(sum[chain], lhs, rhs);
  }
  for (int chain = 0; chain < dot_chains; ++chain)
    *sink += float(_mm_cvtsi128_si32(_mm512_castsi512_si128(sum[chain])));
  return rounds * dot_chains * 64 * 2;
#else
  (void)rounds, (void)sink;
  return 0;
#endif
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
