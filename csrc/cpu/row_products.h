// Two products after one another on a block of rows at a time: what lies between them, (rows x hidden) elements, never
// leaves the caches of the core that makes it, no thread waits for another between the two, and the second product
// finds its lhs packed already. first: what the lhs and a rhs of `between` columns give; second: that times a rhs of
// `between` rows.
//
// Sums run over k in the order of gemm.h, so that the results are the same.
#pragma once

#include "cpu/gemm.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// A job holds of each of its rows the lhs, a pass of what is between and the sums. It may hold more than the
// second-level cache: fewer rows would read large weights too often (bench/NOTES.md).
inline constexpr std::int64_t most_bytes_of_row_products = 1664 << 10;
inline constexpr std::int64_t most_rows_at_once = 128, least_rows_at_once = 48;
// Weights that are packed on the way are all packed before the first row: few rows would rather find them in cache, one
// after the other.
inline constexpr std::int64_t least_rows_unpacked = 256;

template <class T>
struct RowProducts {
  Gemm<T> first{}, second{};
  std::int64_t rows_at_once = 0;  // of a job; 0: not this way
  int workers = 0;
};

template <class T>
BIGMODEL_INLINE std::int64_t packed_bytes_on_the_way(const Gemm<T>& gemm) {
  std::int64_t bytes = 0;
  for (int p = 0; p < gemm.products; ++p) {
    const Product<T>& product = gemm.product[p];
    if (product.packed_rhs) continue;
    bytes += packed_lanes<T>(product.rhs.rows, product.rhs.columns) * std::int64_t{sizeof(Lane<T>)};
  }
  return bytes;
}

// How many rows a job takes, a multiple of `step`; 0 where that would be too few, or workers would wait for the last.
template <class T>
static std::int64_t choose_rows_at_once(const Gemm<T>& first, const Gemm<T>& second, int workers, std::int64_t step) {
  if (!fills_avx512<ElementOf<T>>) return 0;  // slower with AVX2, not measured elsewhere
  const std::int64_t rows = first.product[0].lhs.rows, between = second.product[0].rhs.rows;
  if (rows < least_rows_at_once) return 0;
  const std::int64_t unpacked = packed_bytes_on_the_way(first) + packed_bytes_on_the_way(second);
  if (unpacked > 2 * chunk_bytes || (unpacked > 0 && rows < least_rows_unpacked)) return 0;
  const std::int64_t bytes_of_row =
      (first.product[0].lhs.columns + depth_for<T>(between)) * std::int64_t{sizeof(ElementOf<T>)} +
      (second.product[0].rhs.columns + first.products * most_epilogue_columns) * std::int64_t{sizeof(float)};
  const std::int64_t most = least(most_rows_at_once, most_bytes_of_row_products / bytes_of_row);
  if (most < least_rows_at_once) return 0;
  for (std::int64_t jobs = round_up(parts_of(rows, most), workers);; jobs += workers) {
    const std::int64_t chosen = round_up(parts_of(rows, jobs), step);
    if (chosen < least_rows_at_once) return 0;
    const std::int64_t slowest = parts_of(parts_of(rows, chosen), workers) * chosen;
    if (chosen <= most && 19 * slowest * workers <= 20 * rows) return chosen;
  }
}

// One of the two: a job works off `columns` columns at a time, and its lhs holds up to `lhs_columns`.
template <class T>
static void plan_row_product(Gemm<T>& gemm, Arena& arena, std::int64_t rows, int workers, std::int64_t columns,
                             std::int64_t lhs_columns) {
  constexpr std::int64_t line = 64, element = sizeof(ElementOf<T>);
  gemm.m = gemm.product[0].lhs.rows;
  gemm.n = gemm.product[0].rhs.columns;
  gemm.workers = workers;
  gemm.block_rows = rows;
  gemm.block_columns = columns;
  gemm.epilogue_columns = even_part(columns, most_epilogue_columns, tile_columns);
  for (int p = 0; p < gemm.products; ++p) {
    const Product<T>& product = gemm.product[p];
    gemm.depth[p] = depth_for<T>(product.rhs.rows);
    gemm.chunk[p] = product.packed_rhs ? nullptr : take<Lane<T>>(arena, packed_lanes<T>(product.rhs.rows, gemm.n));
  }
  gemm.lhs_stride = round_up(lhs_columns, 2 * line / element) + line / element;
  gemm.sums_stride = round_up(columns, tile_columns) + line / std::int64_t{sizeof(float)};
  gemm.lhs_blocks = take<ElementOf<T>>(arena, workers * lhs_block_size(gemm));
  gemm.sums = take<float>(arena, workers * sums_size(gemm));
}

// Whether both products are better run this way, in jobs of a multiple of `step` rows. The products of the first have
// the same lhs, that of the second is not looked at.
template <class T>
static bool choose_row_products(RowProducts<T>& both, std::int64_t step) {
  const Product<T>&first = both.first.product[0], &second = both.second.product[0];
  const std::int64_t work = first.rhs.rows * both.first.products + second.rhs.columns;
  both.workers = workers_for(first.lhs.rows * second.rhs.rows * work, product_worth_a_thread);
  both.rows_at_once = choose_rows_at_once(both.first, both.second, both.workers, step);
  return both.rows_at_once > 0;
}

template <class T>
static void plan_row_products(RowProducts<T>& both, Arena& arena) {
  const Matrix<const T>&first = both.first.product[0].rhs, &second = both.second.product[0].rhs;
  plan_row_product(both.first, arena, both.rows_at_once, both.workers, most_epilogue_columns, first.rows);
  plan_row_product(both.second, arena, both.rows_at_once, both.workers, second.columns, depth_for<T>(second.rows));
}

// The packed rhs of a product, from the panel of column `column` and row k on.
template <class T>
BIGMODEL_INLINE const Lane<T>* panels_of(const Gemm<T>& gemm, int p, std::int64_t column, std::int64_t k) {
  const Product<T>& product = gemm.product[p];
  const Lane<T>* panels = product.packed_rhs ? static_cast<const Lane<T>*>(product.packed_rhs) : gemm.chunk[p];
  return panels + column / tile_columns * panel_lanes<T>(product.rhs.rows) + k / ElementLayout<T>::group * tile_columns;
}

// What a vector becomes by being stored as T.
template <class T>
BIGMODEL_INLINE F32 as_stored(F32 values) {
  if constexpr (is_same<T, float>) {
    return values;
  } else {
    T stored[lanes];
    store(stored, values);
    return load(stored);
  }
}

// What is between the products, as far as one job holds it: a packed lhs of rows from `row` and columns from `column`.
template <class T>
struct Between {
  ElementOf<T>* data;
  std::int64_t stride, row, column;

  BIGMODEL_INLINE_MEMBER void write(const Place& place, F32 values) const {
    ElementOf<T>* const to = data + (place.row - row) * stride + place.column - column;
    if constexpr (is_same<T, ElementOf<T>>) {
      store_up_to(to, values, place.left);
    } else {
      store_up_to(to, as_stored<T>(values), place.left);
    }
  }
};

// A matrix as the packed rhs of a later product, whose k its rows are, written by vectors of two rows.
template <class T>
struct Panels {
  Lane<T>* data;  // or nullptr: not wanted
  std::int64_t rows;

  // Rows `row`, which is even, and row + 1.
  BIGMODEL_INLINE_MEMBER void write(std::int64_t row, std::int64_t column, F32 even, F32 odd) const {
    if (!data) return;
    Lane<T>* const to = data + column / tile_columns * panel_lanes<T>(rows) +
                        row / ElementLayout<T>::group * tile_columns + column % tile_columns;
    if constexpr (!is_float<ElementOf<T>>) {
      store_pairs(to, even, odd);
    } else {
      store(to, as_stored<T>(even));
      if (row + 1 < rows) store(to + tile_columns, as_stored<T>(odd));
    }
  }
};

template <class T>
static Panels<T> take_panels(Arena& arena, bool wanted, std::int64_t rows, std::int64_t columns) {
  return {wanted ? take<Lane<T>>(arena, packed_lanes<T>(rows, columns)) : nullptr, rows};
}

// The first product of a job's rows for columns [between.column, between.column + count).
template <class T, class Epilogue>
BIGMODEL_INLINE void multiply_first(const Gemm<T>& gemm, Block block, std::int64_t count, const ElementOf<T>* lhs,
                                    const Between<T>& between, const Touched& touched, Epilogue epilogue) {
  const std::int64_t k = gemm.product[0].rhs.rows;
  for (std::int64_t j = 0; j < count; j += gemm.block_columns) {
    block.column = between.column + j;
    block.columns = least(gemm.block_columns, count - j);
    for (int p = 0; p < gemm.products; ++p) {
      for (std::int64_t from = 0; from < k; from += gemm.depth[p]) {
        const std::int64_t depth = least(gemm.depth[p], k - from);
        multiply_pass<fills_avx512<ElementOf<T>>>(
            gemm, p, block, depth, {lhs + from, gemm.lhs_stride}, panels_of(gemm, p, block.column, from), from > 0,
            p == gemm.products - 1 && from + depth >= k, touched,
            [&](const Block& done) BIGMODEL_INLINE_LAMBDA { epilogue(done, between); });
      }
    }
  }
}

// first_epilogue(block, between) writes what is between the products, second_epilogue(block) the result; as in run.
template <class T, class FirstEpilogue, class SecondEpilogue>
static void run_row_products(const RowProducts<T>& both, const Touched& first_touched, FirstEpilogue first_epilogue,
                             const Touched& second_touched, SecondEpilogue second_epilogue) {
  const Gemm<T>&first = both.first, &second = both.second;
  const Matrix<const T> lhs = first.product[0].lhs;
  const std::int64_t columns = second.product[0].rhs.rows;
  pack_chunks(first, 0, first.n);
  pack_chunks(second, 0, second.n);
  for_each_job(first.workers, parts_of(first.m, both.rows_at_once), [&](std::int64_t job, int worker) {
    Block block{}, result{};
    block.row = result.row = job * both.rows_at_once;
    block.rows = result.rows = least(both.rows_at_once, first.m - block.row);
    block.stride = first.sums_stride;
    for (int p = 0; p < first.products; ++p) {
      block.sums[p] = first.sums + worker * sums_size(first) + p * first.block_rows * first.sums_stride;
    }
    result.columns = second.n;
    result.stride = second.sums_stride;
    result.sums[0] = second.sums + worker * sums_size(second);
    ElementOf<T>* const packed_lhs = first.lhs_blocks + worker * lhs_block_size(first);
    pack_lhs(block.rows, lhs.columns, at(lhs, block.row, 0), lhs.row_stride, lhs.column_stride, packed_lhs,
             first.lhs_stride);
    Between<T> between{second.lhs_blocks + worker * lhs_block_size(second), second.lhs_stride, block.row, 0};
    for (; between.column < columns; between.column += second.depth[0]) {
      const std::int64_t k = between.column, depth = least(second.depth[0], columns - k);
      multiply_first(first, block, depth, packed_lhs, between, first_touched, first_epilogue);
      if (packed_k<ElementOf<T>>(depth) > depth) {  // of a pair, the second is multiplied by zero
        for (std::int64_t i = 0; i < block.rows; ++i) between.data[i * between.stride + depth] = {};
      }
      multiply_pass<fills_avx512<ElementOf<T>>>(second, 0, result, depth, {between.data, between.stride},
                                                panels_of(second, 0, 0, k), k > 0, k + depth >= columns, second_touched,
                                                second_epilogue);
    }
  });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
