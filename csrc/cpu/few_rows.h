// Products with few rows on the left and a rhs whose columns are contiguous (a weight as it lies in memory): bound by
// reading the rhs once, so nothing is packed and the lanes run along k. The threads share out the columns.
#pragma once

#include "cpu/isa/pack.h"
#include "cpu/jobs.h"
#include "cpu/product.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// Measured on Zen 3, rhs from L3: up to 8 rows this beats the blocked product even with the rhs packed already, by 1.6
// times at one row; up to 16 it beats packing on the way.
inline constexpr std::int64_t most_few_rows = 16, most_few_rows_packed = 8;
inline constexpr std::int64_t few_rows_columns = 64;  // of one job
inline constexpr std::int64_t few_rows_sums = most_few_rows * few_rows_columns;

template <class T>
BIGMODEL_INLINE bool takes_few_rows(const Product<T>* product, int products) {
  for (int p = 0; p < products; ++p) {
    const std::int64_t most = product[p].packed_rhs ? most_few_rows_packed : most_few_rows;
    if (product[p].rhs.row_stride != 1 || product[p].lhs.rows > most) return false;
  }
  return true;
}

// Rows of the lhs an odd number of cache lines apart do not compete for the same lines of L1.
BIGMODEL_INLINE std::int64_t few_rows_stride(std::int64_t k) { return round_up(k, 32) + 16; }

// Sums of every worker, and the lhs as fp32, which every job reads.
template <class T>
BIGMODEL_INLINE std::int64_t few_rows_floats(const Product<T>* product, int products, int workers) {
  std::int64_t floats = workers * products * few_rows_sums;
  for (int p = 0; p < products; ++p) floats += product[p].lhs.rows * few_rows_stride(product[p].lhs.columns);
  return floats;
}

// sums[i * stride + c] = dot(lhs row i, rhs column c) for rows x columns dots of length k.
template <int rows, int columns, class T>
BIGMODEL_INLINE void dot_tile(std::int64_t k, const float* lhs, std::int64_t lhs_stride, const T* rhs,
                              std::int64_t rhs_stride, float* sums, std::int64_t stride) {
  F32 total[rows][columns];
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) total[i][c] = zero();
  }
  const auto step = [&](std::int64_t p, auto load_rhs) BIGMODEL_INLINE_LAMBDA {
    F32 b[columns];
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) b[c] = load_rhs(rhs + c * rhs_stride + p);
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) {
      const F32 a = load(lhs + i * lhs_stride + p);
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) total[i][c] = fma(a, b[c], total[i][c]);
    }
  };
  std::int64_t p = 0;
  for (; p + lanes <= k; p += lanes) step(p, [](const T* from) BIGMODEL_INLINE_LAMBDA { return load(from); });
  if (p < k) step(p, [&](const T* from) BIGMODEL_INLINE_LAMBDA { return load_first(from, static_cast<int>(k - p)); });
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) sums[i * stride + c] = reduce_add(total[i][c]);
  }
}

// Up to `most` rows against `columns` columns.
template <int most, int columns, class T>
BIGMODEL_INLINE void dot_last_rows(std::int64_t m, std::int64_t k, const float* lhs, std::int64_t lhs_stride,
                                   const T* rhs, std::int64_t rhs_stride, float* sums, std::int64_t stride) {
  if constexpr (most > 0) {
    if (m == most) {
      dot_tile<most, columns>(k, lhs, lhs_stride, rhs, rhs_stride, sums, stride);
    } else {
      dot_last_rows<most - 1, columns>(m, k, lhs, lhs_stride, rhs, rhs_stride, sums, stride);
    }
  }
}

// All rows against `columns` columns, `rows` at a time.
template <int rows, int columns, class T>
static __attribute__((noinline)) void dot_columns(std::int64_t m, std::int64_t k, const float* lhs,
                                                  std::int64_t lhs_stride, const T* rhs, std::int64_t rhs_stride,
                                                  float* sums, std::int64_t stride) {
  for (; m >= rows; m -= rows, lhs += rows * lhs_stride, sums += rows * stride) {
    dot_tile<rows, columns>(k, lhs, lhs_stride, rhs, rhs_stride, sums, stride);
  }
  dot_last_rows<rows - 1, columns>(m, k, lhs, lhs_stride, rhs, rhs_stride, sums, stride);
}

template <int rows, int together, class T>
BIGMODEL_INLINE void dot_block(Matrix<const T> rhs, std::int64_t m, const float* lhs, std::int64_t lhs_stride,
                               const Block& block, float* sums) {
  std::int64_t c = 0;
  for (; c + together <= block.columns; c += together) {
    dot_columns<rows, together>(m, rhs.rows, lhs, lhs_stride, at(rhs, 0, block.column + c), rhs.column_stride, sums + c,
                                block.stride);
  }
  for (; c < block.columns; ++c) {
    dot_columns<rows, 1>(m, rhs.rows, lhs, lhs_stride, at(rhs, 0, block.column + c), rhs.column_stride, sums + c,
                         block.stride);
  }
}

// Twelve sums at a time, and three or four streams of the rhs, fill sixteen vector registers.
template <class T>
static void dot_block(Matrix<const T> rhs, std::int64_t m, const float* lhs, std::int64_t lhs_stride,
                      const Block& block, float* sums) {
  if (m >= 4) {
    dot_block<4, 3>(rhs, m, lhs, lhs_stride, block, sums);
  } else {
    dot_block<3, 4>(rhs, m, lhs, lhs_stride, block, sums);
  }
}

template <class T, class Epilogue>
BIGMODEL_INLINE void multiply_few_rows(const Product<T>* product, int products, int workers, float* workspace,
                                       Epilogue epilogue) {
  const std::int64_t m = product[0].lhs.rows, n = product[0].rhs.columns;
  const float* lhs[most_products];
  float* copies = workspace + workers * products * few_rows_sums;
  for (int p = 0; p < products; ++p) {
    const Matrix<const T> from = product[p].lhs;
    const std::int64_t stride = few_rows_stride(from.columns);
    copy_in(m, from.columns, from.data, from.row_stride, from.column_stride, copies, stride);
    lhs[p] = copies;
    copies += m * stride;
  }
  for_each_job(workers, parts_of(n, few_rows_columns), [&](std::int64_t job, int worker) {
    Block block{};
    block.row = 0;
    block.rows = m;
    block.column = job * few_rows_columns;
    block.columns = least(few_rows_columns, n - block.column);
    block.stride = few_rows_columns;
    for (int p = 0; p < products; ++p) {
      block.sums[p] = workspace + (worker * products + p) * few_rows_sums;
      dot_block(product[p].rhs, m, lhs[p], few_rows_stride(product[p].lhs.columns), block, block.sums[p]);
    }
    epilogue(block);
  });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
