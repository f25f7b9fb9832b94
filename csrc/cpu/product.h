// What the blocked and the few-rows product share: operands, blocks of sums, how many threads a product is worth.
#pragma once

#include "bigmodel/parallel.h"
#include "cpu/isa/vec.h"
#include "cpu/jobs.h"
#include "cpu/matrix.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

inline constexpr int most_products = 3;

// lhs(m x k) rhs(k x n). packed_rhs, if there, holds the same values as linear_pack lays out rhs transposed.
template <class T>
struct Product {
  Matrix<const T> lhs, rhs;
  const void* packed_rhs = nullptr;
};

// Sums of rows [row, row + rows) and columns [column, column + columns): element (i, j) of product p at
// sums[p][i * stride + j]. Rows are whole vectors long, so an epilogue may work on them in fp32 past `columns`.
struct Block {
  std::int64_t row, column, rows, columns, stride;
  float* sums[most_products];
};

BIGMODEL_INLINE std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
BIGMODEL_INLINE std::int64_t parts_of(std::int64_t size, std::int64_t part) { return (size + part - 1) / part; }

// Waking a thread costs a few microseconds, in which one thread does some 200,000 multiply-adds; in the products' inner
// loops 600,000 with AVX-512.
inline constexpr std::int64_t worth_a_thread = 200'000;
inline constexpr std::int64_t product_worth_a_thread = lanes == 16 ? 600'000 : worth_a_thread;
BIGMODEL_INLINE int workers_for(std::int64_t multiply_adds, std::int64_t worth = worth_a_thread) {
  return static_cast<int>(least(max_workers(), 1 + multiply_adds / worth));
}

inline constexpr std::int64_t elementwise_columns = 512;

// Element by element work on rows x columns: body(block) for pieces of one row, whose sums are scratch.
template <class Body>
BIGMODEL_INLINE void for_each_row_piece(std::int64_t rows, std::int64_t columns, Body body) {
  constexpr std::int64_t rows_of_job = 16;
  for_each_job(workers_for(rows * columns), parts_of(rows, rows_of_job), [&](std::int64_t job, int) {
    float scratch[most_products][elementwise_columns];
    Block block{};
    block.rows = 1;
    block.stride = elementwise_columns;
    for (int p = 0; p < most_products; ++p) block.sums[p] = scratch[p];
    const std::int64_t first = job * rows_of_job, last = first + least(rows_of_job, rows - first);
    for (block.row = first; block.row < last; ++block.row) {
      for (block.column = 0; block.column < columns; block.column += elementwise_columns) {
        block.columns = least(elementwise_columns, columns - block.column);
        body(block);
      }
    }
  });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
