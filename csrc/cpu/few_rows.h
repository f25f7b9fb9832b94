// Products with few rows on the left and a rhs whose columns are contiguous (a weight as it lies in memory): bound by
// reading the rhs once, so nothing is packed and the lanes run along k. The threads share out the columns.
#pragma once

#include "cpu/isa/pack.h"
#include "cpu/jobs.h"
#include "cpu/operands.h"
#include "cpu/product.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// Up to so many rows, if k is long enough (takes_few_rows); up to fewer where the blocked product finds pairs of
// bfloat16 packed.
inline constexpr std::int64_t most_few_rows = 32, most_few_rows_packed_pairs = 8;
inline constexpr std::int64_t few_rows_columns = 48;  // of one job: a multiple of vectors and of groups
// Up to four rows go along whole columns, as memory likes it. More of them take a group of columns piece by piece, and
// find the piece in L1 from the fifth row on.
inline constexpr std::int64_t few_rows_at_once = 4, few_rows_group = 6;
#if defined(__AVX512F__)
template <class Element>
inline constexpr std::int64_t few_rows_depth = 4096 / sizeof(Element);
inline constexpr int few_rows_together = 6;  // columns; 24 sums fill 32 vector registers
inline constexpr bool few_rows_ask = true;
#else
template <class Element>
inline constexpr std::int64_t few_rows_depth = 512;
inline constexpr int few_rows_together = 3;  // columns; 12 sums fill 16 vector registers
inline constexpr bool few_rows_ask = false;
#endif
// With AVX-512 the columns that come next are asked for into L2 where the rhs may come from memory: prefetchers start
// anew with every column, and short ones were read at half of the memory's bandwidth (bench/NOTES.md). What more than
// these many bytes take is held to be such a rhs.
inline constexpr std::int64_t few_rows_cached = std::int64_t{1} << 20;
inline constexpr std::int64_t few_rows_most_group = 12, few_rows_whole = std::int64_t{1} << 62;

// Adding up the lanes of m n sums takes longer than packing k n elements where k is short: more than four rows are then
// multiplied faster packed, as long as the rhs is in cache.
template <class T>
BIGMODEL_INLINE bool takes_few_rows(const Product<T>& product) {
  const bool packed_pairs = !is_float<ElementOf<T>> && product.packed_rhs;
  const std::int64_t m = product.lhs.rows, k = product.rhs.rows, n = product.rhs.columns;
  if (product.rhs.row_stride != 1 || m > (packed_pairs ? most_few_rows_packed_pairs : most_few_rows)) return false;
  return m <= few_rows_at_once || k >= m * lanes || k * n * std::int64_t{sizeof(T)} > few_rows_cached;
}

// Rows of the lhs an odd number of cache lines apart do not compete for the same lines of L1.
template <class Element>
constexpr std::int64_t few_rows_stride(std::int64_t k) {
  constexpr std::int64_t line = 64 / sizeof(Element);
  return round_up(k, 2 * line) + line;
}

// Of one worker: the sums of each product, and the lanes of those of a group of columns.
inline constexpr std::int64_t few_rows_sums = most_few_rows * few_rows_columns;
inline constexpr std::int64_t few_rows_totals = most_few_rows * few_rows_most_group * lanes;
constexpr std::int64_t few_rows_worker(int products) { return products * few_rows_sums + few_rows_totals + worker_gap; }

// Whether every job reads the rows of an lhs where they lie, and not from a copy in what is multiplied. Rows whole
// pages apart would all take the same lines of L1.
template <class T>
BIGMODEL_INLINE bool in_place(const Matrix<const T>& lhs) {
  const bool same_lines = lhs.rows > few_rows_at_once && lhs.row_stride * std::int64_t{sizeof(T)} % 4096 == 0;
  return is_same<T, ElementOf<T>> && lhs.column_stride == 1 && !same_lines;
}

// What a vector of lanes takes of a row of T: fp32, or pairs of bfloat16.
template <class Element>
struct Terms {
  template <class T>
  BIGMODEL_INLINE_MEMBER F32 read(const T* p) const {
    return load(p);
  }
  template <class T>
  BIGMODEL_INLINE_MEMBER F32 read_last(const T* p, int count) const {
    return load_first(p, count);
  }
};
#if defined(BIGMODEL_BF16_DOT)
template <>
struct Terms<bfloat16> {
  BIGMODEL_INLINE_MEMBER Pairs read(const bfloat16* p) const { return load_pairs(p); }
  BIGMODEL_INLINE_MEMBER Pairs read_last(const bfloat16* p, int count) const { return load_last_pairs(p, count); }
};
#endif

// Sums of every worker, and the copies.
template <class T>
BIGMODEL_INLINE std::int64_t few_rows_floats(const Product<T>* product, int products, int workers) {
  std::int64_t floats = workers * few_rows_worker(products);
  for (int p = 0; p < products; ++p) {
    const Matrix<const T>& lhs = product[p].lhs;
    constexpr std::int64_t elements = sizeof(float) / sizeof(ElementOf<T>);
    if (!in_place(lhs)) floats += lhs.rows * few_rows_stride<ElementOf<T>>(lhs.columns) / elements;
  }
  return floats;
}

// totals[(c * most_few_rows + i) * lanes ...] (+)= the lanes of dot(lhs row i, rhs column c), for rows x columns dots
// of length k. On the way `asks` columns from `next` on are asked for.
template <int rows, int columns, int asks, class Element, class T>
BIGMODEL_INLINE void dot_tile(std::int64_t k, const Element* lhs, std::int64_t lhs_stride, const T* rhs,
                              std::int64_t rhs_stride, const T* next, float* totals, bool add) {
  F32 total[rows][columns];
  const auto each = [&](auto body) BIGMODEL_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 6
      for (int c = 0; c < columns; ++c) body(total[i][c], totals + (c * most_few_rows + i) * lanes);
    }
  };
  each([&](F32& sum, const float* from) BIGMODEL_INLINE_LAMBDA { sum = add ? load(from) : zero(); });
  const auto step = [&](std::int64_t p, auto read) BIGMODEL_INLINE_LAMBDA {
    decltype(read(rhs)) b[columns];
#pragma GCC unroll 6
    for (int c = 0; c < columns; ++c) b[c] = read(rhs + c * rhs_stride + p);
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) {
      const auto a = read(lhs + i * lhs_stride + p);
#pragma GCC unroll 6
      for (int c = 0; c < columns; ++c) total[i][c] = multiply_add(a, b[c], total[i][c]);
    }
  };
  constexpr Terms<Element> terms;
  constexpr int width = lanes * Layout<Element>::group;
  std::int64_t p = 0;
  for (; p + width <= k; p += width) {
    if (asks > 0 && p * std::int64_t{sizeof(T)} % 64 == 0) {
#pragma GCC unroll 6
      for (int c = 0; c < asks; ++c) __builtin_prefetch(next + c * rhs_stride + p, 0, 2);
    }
    step(p, [&](const auto* from) BIGMODEL_INLINE_LAMBDA { return terms.read(from); });
  }
  // What follows the last element of a row is another's, and may be no number.
  const int left = static_cast<int>(k - p);
  if (left > 0) step(p, [&](const auto* from) BIGMODEL_INLINE_LAMBDA { return terms.read_last(from, left); });
  each([&](const F32& sum, float* to) BIGMODEL_INLINE_LAMBDA { store(to, sum); });
}

// Up to `most` rows against `columns` columns.
template <int most, int columns, int asks, class Element, class T>
BIGMODEL_INLINE void dot_last_rows(std::int64_t m, std::int64_t k, const Element* lhs, std::int64_t lhs_stride,
                                   const T* rhs, std::int64_t rhs_stride, const T* next, float* totals, bool add) {
  if constexpr (most > 0) {
    if (m == most) {
      dot_tile<most, columns, asks>(k, lhs, lhs_stride, rhs, rhs_stride, next, totals, add);
    } else {
      dot_last_rows<most - 1, columns, asks>(m, k, lhs, lhs_stride, rhs, rhs_stride, next, totals, add);
    }
  }
}

// m rows against `columns` columns, `rows` at a time.
template <int rows, int columns, int asks, class Element, class T>
static __attribute__((noinline)) void dot_columns(std::int64_t m, std::int64_t k, const Element* lhs,
                                                  std::int64_t lhs_stride, const T* rhs, std::int64_t rhs_stride,
                                                  const T* next, float* totals, bool add) {
  for (; m >= rows; m -= rows, lhs += rows * lhs_stride, totals += rows * lanes) {
    dot_tile<rows, columns, asks>(k, lhs, lhs_stride, rhs, rhs_stride, next, totals, add);
  }
  dot_last_rows<rows - 1, columns, asks>(m, k, lhs, lhs_stride, rhs, rhs_stride, next, totals, add);
}

// Columns that come next: those of a block, up to `end`, then those that its worker turns to after the block.
template <class T>
struct NextColumns {
  std::int64_t end;
  const T* after;
};

// Rows [first, first + k) of columns [column, end) of the rhs, `together` at a time, against m rows. Of the `together`
// columns that come next those from number `from` on are asked for.
template <int rows, int together, int asks, class Element, class T>
BIGMODEL_INLINE void dot_group(Matrix<const T> rhs, std::int64_t first, std::int64_t k, std::int64_t column,
                               std::int64_t end, const NextColumns<T>& next, std::int64_t from, std::int64_t m,
                               const Element* lhs, std::int64_t lhs_stride, float* totals) {
  for (; column + together <= end; column += together, totals += together * most_few_rows * lanes) {
    const T* const then = column + 2 * together <= next.end ? at(rhs, 0, column + together) : next.after;
    dot_columns<rows, together, asks>(m, k, lhs, lhs_stride, at(rhs, first, column), rhs.column_stride,
                                      then + from * rhs.column_stride + first, totals, first > 0);
  }
  for (; column < end; ++column, totals += most_few_rows * lanes) {
    const T* const alone = at(rhs, first, column);
    dot_columns<rows, 1, 0>(m, k, lhs, lhs_stride, alone, rhs.column_stride, alone, totals, first > 0);
  }
}

// sums[i * stride + c] = the sum of the lanes of totals (c, i).
static void sum_lanes(std::int64_t m, std::int64_t columns, const float* totals, std::int64_t stride, float* sums) {
  constexpr std::int64_t column = most_few_rows * lanes;
  for (std::int64_t i = 0; i < m; ++i, totals += lanes, sums += stride) {
    const float* from = totals;
    std::int64_t c = 0;
    for (; c + 4 <= columns; c += 4, from += 4 * column) {
      store_sums(sums + c, load(from), load(from + column), load(from + 2 * column), load(from + 3 * column));
    }
    for (; c < columns; ++c, from += column) sums[c] = reduce_add(load(from));
  }
}

// The sums of a block, `group` columns at a time in pieces of `depth`.
template <int rows, int together, int asks, class Element, class T>
BIGMODEL_INLINE void dot_groups(std::int64_t group, std::int64_t depth, Matrix<const T> rhs, std::int64_t m,
                                const Element* lhs, std::int64_t lhs_stride, const Block& block, const T* after,
                                float* totals, float* sums) {
  const std::int64_t end = block.column + block.columns;
  for (std::int64_t column = block.column; column < end; column += group, sums += group) {
    const std::int64_t columns = least(group, end - column);
    for (std::int64_t first = 0; first == 0 || first < rhs.rows; first += depth) {
      for (std::int64_t row = 0; row < m; row += few_rows_at_once) {
        // Each pass over the piece asks for others of the columns that come next.
        const std::int64_t from = row / few_rows_at_once * asks % together;
        dot_group<rows, together, asks>(rhs, first, least(depth, rhs.rows - first), column, column + columns,
                                        {end, after}, from, least(few_rows_at_once, m - row),
                                        lhs + row * lhs_stride + first, lhs_stride, totals + row * lanes);
      }
    }
    sum_lanes(m, columns, totals, block.stride, sums);
  }
}

template <int rows, int together, int asks>
struct Tile {};

// after: where the columns begin that the worker turns to next.
template <class Element, class T>
static void dot_block(Matrix<const T> rhs, std::int64_t m, const Element* lhs, std::int64_t lhs_stride,
                      const Block& block, const T* after, float* totals, float* sums) {
  const bool from_memory = rhs.rows * rhs.columns * std::int64_t{sizeof(T)} > few_rows_cached;
  const auto multiply = [&]<int rows, int together, int asks>(Tile<rows, together, asks>, std::int64_t group,
                                                              std::int64_t depth) BIGMODEL_INLINE_LAMBDA {
    if (few_rows_ask && from_memory) {
      dot_groups<rows, together, few_rows_ask ? asks : 0>(group, depth, rhs, m, lhs, lhs_stride, block, after, totals,
                                                          sums);
    } else {
      dot_groups<rows, together, 0>(group, depth, rhs, m, lhs, lhs_stride, block, after, totals, sums);
    }
  };
  if (m < few_rows_at_once) {
    multiply(Tile<3, 4, 4>(), few_rows_most_group, few_rows_whole);
  } else if (m == few_rows_at_once) {
    multiply(Tile<4, 3, 3>(), few_rows_most_group, few_rows_whole);
  } else {
    multiply(Tile<4, few_rows_together, 2>(), few_rows_group, few_rows_depth<Element>);
  }
}

template <class T, class Epilogue>
BIGMODEL_INLINE void multiply_few_rows(const Product<T>* product, int products, int workers, float* workspace,
                                       Epilogue epilogue) {
  const std::int64_t m = product[0].lhs.rows, n = product[0].rhs.columns;
  using Element = ElementOf<T>;
  const Element* lhs[most_products];
  std::int64_t lhs_stride[most_products];
  Element* copies = reinterpret_cast<Element*>(workspace + workers * few_rows_worker(products));
  for (int p = 0; p < products; ++p) {
    const Matrix<const T> from = product[p].lhs;
    if (in_place(from)) {
      lhs[p] = reinterpret_cast<const Element*>(from.data), lhs_stride[p] = from.row_stride;
      continue;
    }
    lhs[p] = copies, lhs_stride[p] = few_rows_stride<Element>(from.columns);
    copy_in(m, from.columns, from.data, from.row_stride, from.column_stride, copies, lhs_stride[p]);
    copies += m * lhs_stride[p];
  }
  for_each_job(workers, parts_of(n, few_rows_columns), [&](std::int64_t job, int worker) {
    Block block{};
    block.row = 0;
    block.rows = m;
    block.column = job * few_rows_columns;
    block.columns = least(few_rows_columns, n - block.column);
    block.stride = few_rows_columns;
    float* const totals = workspace + worker * few_rows_worker(products);
    for (int p = 0; p < products; ++p) {
      block.sums[p] = totals + few_rows_totals + p * few_rows_sums;
      // Jobs are dealt out in turn (jobs.h): a worker's next one lies `workers` further on.
      const T* const after = p + 1 < products ? at(product[p + 1].rhs, 0, block.column)
                                              : at(product[0].rhs, 0, block.column + workers * few_rows_columns);
      dot_block(product[p].rhs, m, lhs[p], lhs_stride[p], block, after, totals, block.sums[p]);
    }
    epilogue(block);
  });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
