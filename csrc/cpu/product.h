// What the blocked and the few-rows product share: operands, blocks of sums, how many threads a product is worth.
#pragma once

#include "bigmodel/parallel.h"
#include "cpu/isa/vec.h"
#include "cpu/jobs.h"
#include "cpu/matrix.h"
#include "cpu/operands.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

inline constexpr int most_products = 3;

// lhs(m x k) rhs(k x n). packed_rhs, if there, holds the same values as linear_pack lays out rhs transposed.
template <class T>
struct Product {
  Matrix<const T> lhs, rhs;
  const void* packed_rhs = nullptr;
};

template <class T>
BIGMODEL_INLINE bool all_of(const Product<T>* product, int products, bool (*fits)(const Product<T>&)) {
  for (int p = 0; p < products; ++p) {
    if (!fits(product[p])) return false;
  }
  return true;
}

// Sums of rows [row, row + rows) and columns [column, column + columns): element (i, j) of product p at
// sums[p][i * stride + j]. Rows are whole vectors long, so an epilogue may work on them in fp32 past `columns`.
struct Block {
  std::int64_t row, column, rows, columns, stride;
  float* sums[most_products];
};

// Matrices that an epilogue reads or writes, row by row.
struct Touched {
  static constexpr int most = 5;
  struct Rows {
    const char* data;
    std::int64_t row_bytes, element_bytes;
  };
  Rows rows[most];
  int count = 0;
};

template <class T>
BIGMODEL_INLINE void touch(Touched& touched, Matrix<T> matrix) {
  constexpr std::int64_t bytes = sizeof(T);
  if (!matrix.data || matrix.column_stride != 1) return;
  touched.rows[touched.count++] = {reinterpret_cast<const char*>(matrix.data), matrix.row_stride * bytes, bytes};
}

// Of matrices that may be absent.
template <class... T>
BIGMODEL_INLINE Touched touching(Matrix<T>... matrices) {
  static_assert(sizeof...(T) <= Touched::most);
  Touched touched;
  (touch(touched, matrices), ...);
  return touched;
}

// Asks for the lines of one tile. The processor takes lines that nobody else holds so that they can be written.
BIGMODEL_INLINE void ask_for(const Touched& touched, std::int64_t row, std::int64_t rows, std::int64_t column,
                             std::int64_t columns) {
  constexpr std::int64_t line = 64;
  for (int t = 0; t < touched.count; ++t) {
    const Touched::Rows& of = touched.rows[t];
    const char* const first = of.data + row * of.row_bytes + column * of.element_bytes;
    for (std::int64_t i = 0; i < rows; ++i) {
      const char* const begin = first + i * of.row_bytes;
      for (std::int64_t b = 0; b < columns * of.element_bytes; b += line) __builtin_prefetch(begin + b);
    }
  }
}

BIGMODEL_INLINE std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
BIGMODEL_INLINE std::int64_t parts_of(std::int64_t size, std::int64_t part) { return (size + part - 1) / part; }

// Splits `size` into equal parts of at most `most`, each a multiple of `step`.
BIGMODEL_INLINE std::int64_t even_part(std::int64_t size, std::int64_t most, std::int64_t step) {
  const std::int64_t parts = size <= most ? 1 : (size + most - 1) / most;
  const std::int64_t part = round_up((size + parts - 1) / parts, step);
  return part > step ? part : step;
}

// A sum over k is formed in parts, each added to those before it: that keeps rounding errors small, and what a pass
// reads in cache (gemm.h). AVX-512 takes fourteen rows at a time, so few passes over a panel that it may come from L2
// each time: 2 KB of depth save half of the sums' way there and back in fp32, three quarters in bf16 (Zen 4: 1 to 2 %,
// 2 to 5).
template <class Element>
inline constexpr std::int64_t most_depth = fills_avx512<Element> ? 2048 / sizeof(Element) : 256;

// k is worked off in equal parts, each of whole packed lhs rows and whole panels of another product's result.
template <class T>
BIGMODEL_INLINE std::int64_t depth_for(std::int64_t k) {
  return even_part(k, most_depth<ElementOf<T>>, tile_columns);
}

// Waking a thread costs a few microseconds, in which one thread does some 200,000 multiply-adds; in the products' inner
// loops 600,000 with AVX-512.
inline constexpr std::int64_t worth_a_thread = 200'000;
inline constexpr std::int64_t product_worth_a_thread = lanes == 16 ? 600'000 : worth_a_thread;
BIGMODEL_INLINE int workers_for(std::int64_t multiply_adds, std::int64_t worth = worth_a_thread) {
  return static_cast<int>(least(max_workers(), 1 + multiply_adds / worth));
}

// Element by element work on rows x columns, which nothing multiplies: body(block), without sums, for some rows at a
// time.
template <class Body>
BIGMODEL_INLINE void for_each_rows(std::int64_t rows, std::int64_t columns, Body body) {
  constexpr std::int64_t rows_of_job = 16;
  for_each_job(workers_for(rows * columns), parts_of(rows, rows_of_job), [&](std::int64_t job, int) {
    Block block{};
    block.row = job * rows_of_job;
    block.rows = least(rows_of_job, rows - block.row);
    block.columns = columns;
    body(block);
  });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
