// The bfloat16 forms of pack.h's pack_lhs and pack_rhs. Values that are not bfloat16 are rounded to nearest even.
#pragma once

#include "cpu/isa/pack.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// Vectors even and odd as one of pairs {even, odd}, rounded.
#if defined(__AVX512BF16__)
// Subnormal numbers become zero, for which the products would take them anyway.
BIGMODEL_INLINE F32 pairs_of(F32 even, F32 odd) {
  alignas(64) static constexpr std::uint16_t interleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                               21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                               11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i even_then_odd = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd.v, even.v));
  return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(interleave), even_then_odd))};
}
#else
BIGMODEL_INLINE F32 pairs_of(F32 even, F32 odd) {
  bfloat16 first[lanes], second[lanes];
  store(first, even);
  store(second, odd);
  BFloat16Pair interleaved[lanes];
  for (int lane = 0; lane < lanes; ++lane) interleaved[lane] = {first[lane], second[lane]};
  F32 pairs;
  __builtin_memcpy(&pairs.v, interleaved, sizeof interleaved);
  return pairs;
}
#endif

// Two vectors one after the other, rounded in the same way.
BIGMODEL_INLINE void store_rounded(bfloat16* p, F32 first, F32 second) {
#if defined(__AVX512BF16__)
  _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v)));
#else
  store(p, first);
  store(p + lanes, second);
#endif
}
BIGMODEL_INLINE void store_pairs(BFloat16Pair* p, F32 even, F32 odd) {
  const F32 pairs = pairs_of(even, odd);
  __builtin_memcpy(p, &pairs.v, sizeof pairs.v);
}

// A matrix whose columns have unit stride: vectors of pairs along k, of which squares are transposed.
template <class T>
BIGMODEL_INLINE void pack_lhs_columns(std::int64_t rows, std::int64_t k, const T* source, std::int64_t k_stride,
                                      bfloat16* destination, std::int64_t destination_stride) {
  for (std::int64_t i = 0; i < rows; i += lanes) {
    const auto column = [&](std::int64_t p) BIGMODEL_INLINE_LAMBDA {
      return p < k ? load_up_to(source + p * k_stride + i, rows - i) : zero();
    };
    for (std::int64_t p = 0; p < lhs_width<bfloat16>(k); p += 2 * lanes) {
      F32 square[lanes];
      for (int c = 0; c < lanes; ++c) square[c] = pairs_of(column(p + 2 * c), column(p + 2 * c + 1));
      transpose(square);
      const std::int64_t row_count = rows - i < lanes ? rows - i : lanes, left = lhs_width<bfloat16>(k) - p;
      for (int r = 0; r < row_count; ++r) {
        bfloat16* to = destination + (i + r) * destination_stride + p;
        if (left >= 2 * lanes) {
          __builtin_memcpy(to, &square[r].v, sizeof square[r].v);
        } else {
          __builtin_memcpy(to, &square[r].v, sizeof(bfloat16) * left);
        }
      }
    }
  }
}

template <class T>
static __attribute__((noinline)) void pack_lhs(std::int64_t rows, std::int64_t k, const T* source,
                                               std::int64_t row_stride, std::int64_t k_stride, bfloat16* destination,
                                               std::int64_t destination_stride) {
  if (row_stride == 1 && k_stride != 1) {
    return pack_lhs_columns(rows, k, source, k_stride, destination, destination_stride);
  }
  copy_in(rows, k, source, row_stride, k_stride, destination, destination_stride);
  const std::int64_t written = round_up(k, lanes), missing = lhs_width<bfloat16>(k) - written;
  if (missing <= 0) return;
  for (std::int64_t i = 0; i < rows; ++i) {
    __builtin_memset(destination + i * destination_stride + written, 0, sizeof(bfloat16) * missing);
  }
}

// Two rows of unit stride at a time, interleaved.
template <class T>
BIGMODEL_INLINE void pack_rhs_rows(std::int64_t k, std::int64_t n, const T* source, std::int64_t k_stride,
                                   BFloat16Pair* destination, std::int64_t destination_stride) {
  for (std::int64_t p = 0; p < rhs_rows<bfloat16>(k); ++p) {
    const T* row = source + 2 * p * k_stride;
    for (std::int64_t j = 0; j < n; j += lanes) {
      const F32 even = 2 * p < k ? load_up_to(row + j, n - j) : zero();
      const F32 odd = 2 * p + 1 < k ? load_up_to(row + k_stride + j, n - j) : zero();
      store_pairs(destination + p * destination_stride + j, even, odd);
    }
  }
}

// Columns of any strides: each gives a vector of pairs along k, and a square of them is transposed.
template <class T>
BIGMODEL_INLINE void pack_rhs_columns(std::int64_t k, std::int64_t n, const T* source, std::int64_t k_stride,
                                      std::int64_t n_stride, BFloat16Pair* destination,
                                      std::int64_t destination_stride) {
  const std::int64_t rows = rhs_rows<bfloat16>(k);
  for (std::int64_t j = 0; j < n; j += lanes) {
    for (std::int64_t p = 0; p < rows; p += lanes) {
      F32 square[lanes];
      for (int c = 0; c < lanes; ++c) {
        bfloat16 column[2 * lanes] = {};
        if (j + c < n && 2 * p < k) {
          const std::int64_t count = k - 2 * p < 2 * lanes ? k - 2 * p : 2 * lanes;
          const T* first = source + (j + c) * n_stride + 2 * p * k_stride;
          if (is_same<T, bfloat16> && k_stride == 1 && count == 2 * lanes) {
            __builtin_memcpy(column, first, sizeof column);
          } else {
            copy_in(1, count, first, 0, k_stride, column, 0);
          }
        }
        __builtin_memcpy(&square[c].v, column, sizeof square[c].v);
      }
      transpose(square);
      const std::int64_t last = rows - p < lanes ? rows - p : lanes;
      for (int r = 0; r < last; ++r) {
        __builtin_memcpy(destination + (p + r) * destination_stride + j, &square[r].v, sizeof square[r].v);
      }
    }
  }
}

template <class T>
static __attribute__((noinline)) void pack_rhs(std::int64_t k, std::int64_t n, const T* source, std::int64_t k_stride,
                                               std::int64_t n_stride, BFloat16Pair* destination,
                                               std::int64_t destination_stride) {
  if (n_stride == 1) {
    pack_rhs_rows(k, n, source, k_stride, destination, destination_stride);
  } else {
    pack_rhs_columns(k, n, source, k_stride, n_stride, destination, destination_stride);
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
