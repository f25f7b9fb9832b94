// Products of a few rows with a rhs whose columns are contiguous (a weight as it lies), with the operands swapped:
// rhs^T lhs^T. The weight is then the operand that the micro-kernel reads where it lies, and only the few rows are
// packed; the sums come out transposed. That takes less than adding up lanes (few_rows.h) where the rows fill their
// vectors, and packing the weight in every call (gemm.h) would take as long as multiplying it.
#pragma once

#include "cpu/isa/pack.h"
#include "cpu/jobs.h"
#include "cpu/operands.h"
#include "cpu/product.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// Of one job, at most: a multiple of vectors and, but for the last few, of what is multiplied at once.
inline constexpr std::int64_t most_swapped_columns = lanes == 16 ? 112 : 96;
BIGMODEL_INLINE std::int64_t swapped_columns(std::int64_t n, int workers) {
  return least(most_swapped_columns, round_up(parts_of(n, workers), lanes));
}
// At once so few columns that L1 holds a line of each, though they often lie whole pages apart and then share its eight
// ways: half of AVX-512's register tile, else a whole one. AMX takes a line once only.
template <class Element>
inline constexpr std::int64_t columns_at_once = Layout<Element>::rows / (fills_avx512<Element> ? 2 : 1);

// As many rows as fill their vectors; fewer idle lanes than a quarter of one.
BIGMODEL_INLINE bool fill_lanes(std::int64_t m) { return m > 8 && m <= 32 && 4 * (round_up(m, lanes) - m) < lanes; }

template <class T>
BIGMODEL_INLINE bool takes_swapped(const Product<T>& product) {
  const Matrix<const T>& rhs = product.rhs;
  const bool in_place = is_same<T, ElementOf<T>> && rhs.row_stride == 1 && packed_k<ElementOf<T>>(rhs.rows) == rhs.rows;
  return in_place && !product.packed_rhs && fill_lanes(product.lhs.rows) && rhs.columns >= lanes;
}

// Of one worker: transposed sums of a job, and the sums of each product.
BIGMODEL_INLINE std::int64_t swapped_worker(std::int64_t m, int products) {
  return most_swapped_columns * (round_up(m, lanes) + products * m) + worker_gap;
}

// Sums of every worker, and the packed rows.
template <class T>
BIGMODEL_INLINE std::int64_t swapped_floats(const Product<T>* product, int products, int workers) {
  const std::int64_t m = product[0].lhs.rows;
  std::int64_t floats = workers * swapped_worker(m, products);
  for (int p = 0; p < products; ++p) floats += rhs_rows<ElementOf<T>>(product[p].lhs.columns) * round_up(m, lanes);
  return floats;
}

// sums[j * width + i] = row i of an lhs, packed `width` rows side by side, times column `column` + j of a rhs.
template <class T>
static void multiply_columns(const Matrix<const T>& rhs, std::int64_t column, std::int64_t columns, std::int64_t m,
                             const LaneOf<ElementOf<T>>* rows, std::int64_t width, float* sums) {
  using Element = ElementOf<T>;
  const std::int64_t k = rhs.rows, depth = depth_for<T>(k);
  for (std::int64_t j = 0; j < columns; j += columns_at_once<Element>) {
    const std::int64_t count = least(columns_at_once<Element>, columns - j);
    std::int64_t first = 0;
    do {
      multiply_by_rows<SumsIn::l2>(
          count, m, least(depth, k - first), reinterpret_cast<const Element*>(at(rhs, first, column + j)),
          rhs.column_stride, rows + first / Layout<Element>::group * width, width, sums + j * width, width, first > 0);
      first += depth;
    } while (first < k);
  }
}

template <class T, class Epilogue>
BIGMODEL_INLINE void multiply_swapped(const Product<T>* product, int products, int workers, std::int64_t columns,
                                      float* workspace, Epilogue epilogue) {
  using Lane = LaneOf<ElementOf<T>>;
  const std::int64_t m = product[0].lhs.rows, n = product[0].rhs.columns, width = round_up(m, lanes);
  Lane* rows[most_products];
  Lane* packed = reinterpret_cast<Lane*>(workspace + workers * swapped_worker(m, products));
  for (int p = 0; p < products; ++p) {
    const Matrix<const T>& lhs = product[p].lhs;
    rows[p] = packed;
    pack_rhs(lhs.columns, m, lhs.data, lhs.column_stride, lhs.row_stride, packed, width);
    packed += rhs_rows<ElementOf<T>>(lhs.columns) * width;
  }
  for_each_job(workers, parts_of(n, columns), [&](std::int64_t job, int worker) {
    Block block{};
    block.rows = m;
    block.column = job * columns;
    block.columns = least(columns, n - block.column);
    block.stride = most_swapped_columns;
    float* const sums = workspace + worker * swapped_worker(m, products);
    for (int p = 0; p < products; ++p) {
      block.sums[p] = sums + most_swapped_columns * (width + p * m);
      multiply_columns(product[p].rhs, block.column, block.columns, m, rows[p], width, sums);
      copy_out_transposed(block.columns, m, sums, width, block.sums[p], block.stride);
    }
    epilogue(block);
  });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
