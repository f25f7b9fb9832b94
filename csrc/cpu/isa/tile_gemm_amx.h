// Products of bfloat16 in AMX tiles: 16 rows of 64 bytes, so 16 x 16 of C and 16 x 32 of an operand.
//
// Two by two tiles of C share two tiles of each operand: each tile loaded is multiplied twice. The shape of the tiles
// is set for each call, with fewer rows for the last rows of C, and given up at its end.
#pragma once

#include "cpu/isa/tile_gemm.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

inline constexpr int amx_rows = 16;

// What _tile_loadconfig reads.
struct AmxShape {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// Tiles 0 to 3: C, two by two; 4 and 5: the lhs of its upper and lower half; 6 and 7: the rhs of its left and right.
BIGMODEL_INLINE void amx_configure(int upper_rows, int lower_rows) {
  AmxShape shape;
  for (int tile = 0; tile < 8; ++tile) {
    const bool lower = tile == 2 || tile == 3 || tile == 5;
    shape.row_bytes[tile] = 64;
    shape.rows[tile] = std::uint8_t(tile >= 6 ? amx_rows : lower ? lower_rows : upper_rows);
  }
  // GCC 12 takes the intrinsic to read eight bytes only, and tile loads to read none: this makes it write all first.
  __asm__ volatile("" : : "r"(&shape) : "memory");
  _tile_loadconfig(&shape);
}

struct AmxOperands {
  const bfloat16* lhs;
  std::int64_t lhs_stride;
  const BFloat16Pair* rhs;
  std::int64_t rhs_stride;
  float* c;
  std::int64_t c_stride;
  bool accumulate;
};

template <bool lower, bool right>
BIGMODEL_INLINE void amx_multiply_tile(std::int64_t k, const AmxOperands& x) {
  const std::int64_t lhs_bytes = x.lhs_stride * 2, rhs_bytes = x.rhs_stride * 4, c_bytes = x.c_stride * 4;
  float* c_lower = x.c + amx_rows * x.c_stride;
  if (x.accumulate) {
    _tile_loadd(0, x.c, c_bytes);
    if constexpr (right) _tile_loadd(1, x.c + lanes, c_bytes);
    if constexpr (lower) _tile_loadd(2, c_lower, c_bytes);
    if constexpr (lower && right) _tile_loadd(3, c_lower + lanes, c_bytes);
  } else {
    _tile_zero(0);
    if constexpr (right) _tile_zero(1);
    if constexpr (lower) _tile_zero(2);
    if constexpr (lower && right) _tile_zero(3);
  }
  for (std::int64_t p = 0; p < k; p += Layout<bfloat16>::k_step) {
    const bfloat16* lhs = x.lhs + p;
    const BFloat16Pair* rhs = x.rhs + p / 2 * x.rhs_stride;
    _tile_loadd(4, lhs, lhs_bytes);
    _tile_loadd(6, rhs, rhs_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (right) {
      _tile_loadd(7, rhs + lanes, rhs_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (lower) {
      _tile_loadd(5, lhs + amx_rows * x.lhs_stride, lhs_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (lower && right) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, x.c, c_bytes);
  if constexpr (right) _tile_stored(1, x.c + lanes, c_bytes);
  if constexpr (lower) _tile_stored(2, c_lower, c_bytes);
  if constexpr (lower && right) _tile_stored(3, c_lower + lanes, c_bytes);
}

// Up to two tiles of rows, all columns.
template <bool lower>
BIGMODEL_INLINE void amx_multiply_rows(std::int64_t n, std::int64_t k, AmxOperands x) {
  for (; n > lanes; n -= tile_columns, x.rhs += tile_columns, x.c += tile_columns) amx_multiply_tile<lower, true>(k, x);
  if (n > 0) amx_multiply_tile<lower, false>(k, x);
}

template <SumsIn = SumsIn::l1>
static __attribute__((noinline)) void multiply_by_rows(std::int64_t m, std::int64_t n, std::int64_t k,
                                                       const bfloat16* lhs, std::int64_t lhs_stride,
                                                       const BFloat16Pair* rhs, std::int64_t rhs_stride, float* c,
                                                       std::int64_t c_stride, bool accumulate) {
  constexpr int two_tiles = 2 * amx_rows;
  if (m <= 0 || n <= 0) return;
  AmxOperands x{lhs, lhs_stride, rhs, rhs_stride, c, c_stride, accumulate};
  if (m >= two_tiles) amx_configure(amx_rows, amx_rows);
  for (; m >= two_tiles; m -= two_tiles, x.lhs += two_tiles * lhs_stride, x.c += two_tiles * c_stride) {
    amx_multiply_rows<true>(n, k, x);
  }
  if (m > amx_rows) {
    amx_configure(amx_rows, static_cast<int>(m) - amx_rows);
    amx_multiply_rows<true>(n, k, x);
  } else if (m > 0) {
    amx_configure(static_cast<int>(m), amx_rows);
    amx_multiply_rows<false>(n, k, x);
  }
  _tile_release();
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
