// Products with few rows on the left and a rhs whose columns are contiguous (a weight as it lies in memory): bound by
// reading the rhs once, so nothing is packed and the lanes run along k. The threads share out the columns.
#pragma once

#include "cpu/isa/pack.h"
#include "cpu/jobs.h"
#include "cpu/product.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

inline constexpr std::int64_t most_few_rows = 12;
inline constexpr std::int64_t few_rows_columns = 64;  // of one job
inline constexpr std::int64_t few_rows_sums = most_few_rows * few_rows_columns;

template <class T>
BIGMODEL_INLINE bool takes_few_rows(const Product<T>* product, int products) {
  for (int p = 0; p < products; ++p) {
    if (product[p].rhs.row_stride != 1 || product[p].lhs.rows > most_few_rows) return false;
  }
  return true;
}

// The lhs as fp32, which every job reads; not needed where it is fp32 with contiguous rows already.
template <class T>
BIGMODEL_INLINE std::int64_t few_rows_floats(const Product<T>* product, int products, int workers) {
  std::int64_t floats = workers * products * few_rows_sums;
  for (int p = 0; p < products; ++p) floats += product[p].lhs.rows * round_up(product[p].lhs.columns, lanes);
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

// All rows against `columns` columns.
template <int columns, class T>
static __attribute__((noinline)) void dot_columns(std::int64_t m, std::int64_t k, const float* lhs,
                                                  std::int64_t lhs_stride, const T* rhs, std::int64_t rhs_stride,
                                                  float* sums, std::int64_t stride) {
  for (; m >= 3; m -= 3, lhs += 3 * lhs_stride, sums += 3 * stride) {
    dot_tile<3, columns>(k, lhs, lhs_stride, rhs, rhs_stride, sums, stride);
  }
  if (m == 2) dot_tile<2, columns>(k, lhs, lhs_stride, rhs, rhs_stride, sums, stride);
  if (m == 1) dot_tile<1, columns>(k, lhs, lhs_stride, rhs, rhs_stride, sums, stride);
}

template <class T>
static void dot_block(Matrix<const T> rhs, std::int64_t m, const float* lhs, std::int64_t lhs_stride,
                      std::int64_t column, std::int64_t columns, float* sums, std::int64_t stride) {
  constexpr int together = 4;
  const std::int64_t last = column + columns;
  for (; column + together <= last; column += together, sums += together) {
    dot_columns<together>(m, rhs.rows, lhs, lhs_stride, at(rhs, 0, column), rhs.column_stride, sums, stride);
  }
  for (; column < last; ++column, ++sums) {
    dot_columns<1>(m, rhs.rows, lhs, lhs_stride, at(rhs, 0, column), rhs.column_stride, sums, stride);
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
    const std::int64_t stride = round_up(from.columns, lanes);
    copy_in(m, from.columns, from.data, from.row_stride, from.column_stride, copies, stride);
    lhs[p] = copies;
    copies += m * stride;
  }
  for_each_job(workers, parts_of(n, few_rows_columns), [&](std::int64_t job, int worker) {
    Block block;
    block.row = 0;
    block.rows = m;
    block.column = job * few_rows_columns;
    block.columns = least(few_rows_columns, n - block.column);
    block.stride = few_rows_columns;
    for (int p = 0; p < products; ++p) {
      block.sums[p] = workspace + (worker * products + p) * few_rows_sums;
      dot_block(product[p].rhs, m, lhs[p], round_up(product[p].lhs.columns, lanes), block.column, block.columns,
                block.sums[p], block.stride);
    }
    epilogue(block);
  });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
