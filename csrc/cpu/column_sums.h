// Sums over the rows of a matrix: the gradients of biases.
#pragma once

#include "cpu/epilogue.h"
#include "cpu/jobs.h"
#include "cpu/product.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

inline constexpr std::int64_t sum_width = 128, sum_rows = 512;
// Rows that are added up before anything else: few, since sums of sums keep rounding errors small.
inline constexpr std::int64_t summed_together = 32;

// One partial sum per `sum_rows` rows, so that threads share tall matrices.
BIGMODEL_INLINE std::int64_t column_sums_floats(std::int64_t rows, std::int64_t columns) {
  return parts_of(rows, sum_rows) * round_up(columns, sum_width);
}

// sums[j] = sum_i a[i, j] over a block of columns.
template <class T>
static void sum_rows_of(Matrix<const T> a, std::int64_t column, std::int64_t columns, float* sums) {
  __builtin_memset(sums, 0, sum_width * sizeof(float));
  for (std::int64_t first = 0; first < a.rows; first += summed_together) {
    const std::int64_t last = first + least(summed_together, a.rows - first);
    for (std::int64_t j = 0; j < columns; j += lanes) {
      F32 sum = zero();
      for (std::int64_t i = first; i < last; ++i) {
        sum = sum + read(at(a, i, column), a.column_stride, j, columns - j);
      }
      store(sums + j, load(sums + j) + sum);
    }
  }
}

// result[j] = sum_i a[i, j], the same for any number of threads. workspace: column_sums_floats(rows, columns).
template <class T, class Result>
static void column_sums(Matrix<const T> a, Result* result, float* workspace) {
  const std::int64_t row_blocks = parts_of(a.rows, sum_rows), column_blocks = parts_of(a.columns, sum_width);
  const std::int64_t width = round_up(a.columns, sum_width);
  for_each_job(workers_for(a.rows * a.columns), row_blocks * column_blocks, [&](std::int64_t job, int) {
    const std::int64_t row = job / column_blocks * sum_rows, column = job % column_blocks * sum_width;
    sum_rows_of(rows_of(a, row, least(sum_rows, a.rows - row)), column, least(sum_width, a.columns - column),
                workspace + job / column_blocks * width + column);
  });
  for (std::int64_t block = 1; block < row_blocks; ++block) add_row(workspace, workspace + block * width, width);
  store_row(result, workspace, a.columns);
}

// The same from the sums of every `summed_together` rows: row g of `groups` holds those of rows from g summed_together
// on.
template <class Result>
static void column_sums_of_groups(Matrix<const float> groups, Result* result) {
  constexpr std::int64_t together = sum_rows / summed_together;
  for (std::int64_t j = 0; j < groups.columns; j += lanes) {
    F32 total = zero();
    for (std::int64_t first = 0; first < groups.rows; first += together) {
      F32 sum = zero();
      for (std::int64_t g = first; g < least(first + together, groups.rows); ++g) sum = sum + load(at(groups, g, j));
      total = first == 0 ? sum : total + sum;
    }
    store_up_to(result + j, total, groups.columns - j);
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
