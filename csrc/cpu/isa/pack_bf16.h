// The bfloat16 forms of pack.h's pack_lhs and pack_rhs. Values that are not bfloat16 are rounded to nearest even.
#pragma once

#include "cpu/isa/pack.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

template <class T>
static __attribute__((noinline)) void pack_lhs(std::int64_t rows, std::int64_t k, const T* source,
                                               std::int64_t row_stride, std::int64_t k_stride, bfloat16* destination,
                                               std::int64_t destination_stride) {
  copy_in(rows, k, source, row_stride, k_stride, destination, destination_stride);
  const std::int64_t written = round_up(k, lanes), missing = lhs_width<bfloat16>(k) - written;
  if (missing <= 0) return;
  for (std::int64_t i = 0; i < rows; ++i) {
    __builtin_memset(destination + i * destination_stride + written, 0, sizeof(bfloat16) * missing);
  }
}

// A vector of pairs {even, odd}, rounded.
BIGMODEL_INLINE void store_pairs(BFloat16Pair* p, F32 even, F32 odd) {
  bfloat16 first[lanes], second[lanes];
  store(first, even);
  store(second, odd);
  for (int lane = 0; lane < lanes; ++lane) p[lane] = {first[lane], second[lane]};
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
          copy_in(1, count, source + (j + c) * n_stride + 2 * p * k_stride, 0, k_stride, column, 0);
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
