// csrc/cpu/isa/pack.h and tile_gemm.h: every remainder of m, n and k, every layout, at the end of readable memory.
#include <initializer_list>
#include <vector>

#include "check.h"
#include "cpu/isa/pack.h"
#include "guarded.h"
#include "numbers.h"
#include "vocabulary.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

using namespace bigmodel::test;

namespace {

struct Shape {
  std::int64_t m, n, k;
};

// A matrix in memory that ends with its last element: by rows, by columns or with gaps.
template <class T>
struct Source {
  std::int64_t rows, columns, row_stride, column_stride;
  Guarded<T> data;

  Source(std::int64_t rows_, std::int64_t columns_, int order, Random& random)
      : rows(rows_),
        columns(columns_),
        row_stride(order == 0   ? columns
                   : order == 1 ? 1
                                : 2 * columns + 1),
        column_stride(order == 0   ? 1
                      : order == 1 ? rows
                                   : 2),
        data(static_cast<std::size_t>((rows - 1) * row_stride + (columns - 1) * column_stride + 1)) {
    for (std::size_t i = 0; i < data.size(); ++i) assign(data[i], random.normal());
  }
  double at(std::int64_t i, std::int64_t j) const { return value_of(data[i * row_stride + j * column_stride]); }
};

// A packed value must be the source's, rounded when the Element is bfloat16.
template <class Element>
double packed_value(double x) {
  return sizeof(Element) == 2 ? Format<bfloat16>::round(x) : x;
}

double element(const float* lane, int) { return *lane; }
double element(const BFloat16Pair* lane, int k) { return value_of(lane->k[k]); }

template <class Element, class T>
void check_packing(const Shape& shape, int order, Random& random) {
  using Lane = typename Layout<Element>::Lane;
  constexpr int group = Layout<Element>::group;
  const std::int64_t width = lhs_width<Element>(shape.k), columns = round_up(shape.n, lanes);
  Source<T> lhs(shape.m, shape.k, order, random), rhs(shape.k, shape.n, order, random);
  Guarded<Element> packed_lhs(static_cast<std::size_t>(shape.m * width));
  Guarded<Lane> packed_rhs(static_cast<std::size_t>(rhs_rows<Element>(shape.k) * columns));
  pack_lhs(shape.m, shape.k, lhs.data.data(), lhs.row_stride, lhs.column_stride, packed_lhs.data(), width);
  pack_rhs(shape.k, shape.n, rhs.data.data(), rhs.row_stride, rhs.column_stride, packed_rhs.data(), columns);
  for (std::int64_t i = 0; i < shape.m; ++i) {
    for (std::int64_t k = 0; k < width; ++k) {
      const double want = k < shape.k ? packed_value<Element>(lhs.at(i, k)) : 0.0;
      check(value_of(packed_lhs[i * width + k]) == want, "pack_lhs of %s, order %d", Format<T>::name, order);
    }
  }
  for (std::int64_t k = 0; k < packed_k<Element>(shape.k); ++k) {
    for (std::int64_t j = 0; j < columns; ++j) {
      const double want = k < shape.k && j < shape.n ? packed_value<Element>(rhs.at(k, j)) : 0.0;
      const double got = element(packed_rhs.data() + k / group * columns + j, static_cast<int>(k % group));
      check(got == want, "pack_rhs of %s, order %d, k %d of %d, column %d of %d", Format<T>::name, order, int(k),
            int(shape.k), int(j), int(shape.n));
    }
  }
}

// C in memory of its own stride, with what it held before when the product is added to it.
struct Result {
  std::int64_t m, n, stride;
  Guarded<float> data;
  std::vector<float> before;

  Result(const Shape& shape, Random& random)
      : m(shape.m),
        n(shape.n),
        stride(round_up(shape.n, lanes) + 3),
        data(static_cast<std::size_t>((shape.m - 1) * stride + round_up(shape.n, lanes))) {
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(random.normal());
    before.assign(data.data(), data.data() + data.size());
  }

  template <class Lhs, class Rhs>
  void check_product(std::int64_t k, bool accumulate, Lhs lhs, Rhs rhs, const char* what) const {
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        double want = accumulate ? before[i * stride + j] : 0.0, size = std::fabs(want);
        for (std::int64_t p = 0; p < k; ++p) {
          want += lhs(i, p) * rhs(p, j);
          size += std::fabs(lhs(i, p) * rhs(p, j));
        }
        const double bound = size * static_cast<double>(k + 2) * 0x1p-24;
        check_close(data[i * stride + j], want, bound, "%s %dx%dx%d, element (%d, %d)", what, int(m), int(n), int(k),
                    int(i), int(j));
      }
      for (std::int64_t j = round_up(n, lanes); j < stride && i + 1 < m; ++j) {
        check(data[i * stride + j] == before[i * stride + j], "%s wrote between the rows of C", what);
      }
    }
  }
};

template <class T>
void check_product(const Shape& shape, bool accumulate, Random& random) {
  using Element = typename Multiply<T>::Element;
  using Lane = typename Layout<Element>::Lane;
  const std::int64_t width = lhs_width<Element>(shape.k), columns = round_up(shape.n, lanes),
                     k = packed_k<Element>(shape.k);
  Source<T> lhs(shape.m, shape.k, 0, random), rhs(shape.k, shape.n, 0, random);
  Guarded<Element> packed_lhs(static_cast<std::size_t>(shape.m * width));
  Guarded<Lane> packed_rhs(static_cast<std::size_t>(rhs_rows<Element>(shape.k) * columns));
  pack_lhs(shape.m, shape.k, lhs.data.data(), lhs.row_stride, lhs.column_stride, packed_lhs.data(), width);
  pack_rhs(shape.k, shape.n, rhs.data.data(), rhs.row_stride, rhs.column_stride, packed_rhs.data(), columns);
  Result result(shape, random);
  multiply_by_rows(shape.m, shape.n, k, packed_lhs.data(), width, packed_rhs.data(), columns, result.data.data(),
                   result.stride, accumulate);
  result.check_product(
      shape.k, accumulate, [&](auto i, auto p) { return lhs.at(i, p); }, [&](auto p, auto j) { return rhs.at(p, j); },
      Format<T>::name);
}

void check_product_by_columns(const Shape& shape, bool accumulate, Random& random) {
  const std::int64_t columns = round_up(shape.n, lanes);
  Source<float> lhs(shape.m, shape.k, 1, random), rhs(shape.k, columns, 0, random);
  Result result(shape, random);
  multiply_by_columns(shape.m, shape.n, shape.k, lhs.data.data(), lhs.column_stride, rhs.data.data(), columns,
                      result.data.data(), result.stride, accumulate);
  result.check_product(
      shape.k, accumulate, [&](auto i, auto p) { return lhs.at(i, p); }, [&](auto p, auto j) { return rhs.at(p, j); },
      "by columns");
}

// fp32 scratch to a tensor of any dtype, as it is and transposed.
template <class T>
void check_copy_out(std::int64_t rows, std::int64_t columns, Random& random) {
  const std::int64_t stride = round_up(columns, lanes);
  Guarded<float> source(static_cast<std::size_t>(round_up(rows, lanes) * stride));
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = static_cast<float>(random.normal());
  Guarded<T> copy(static_cast<std::size_t>(rows * columns)), transposed(static_cast<std::size_t>(rows * columns));
  copy_out(rows, columns, source.data(), stride, copy.data(), columns);
  copy_out_transposed(rows, columns, source.data(), stride, transposed.data(), rows);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      const double want = Format<T>::round(source[i * stride + j]);
      check(value_of(copy[i * columns + j]) == want, "copy_out of %s", Format<T>::name);
      check(value_of(transposed[j * rows + i]) == want, "copy_out_transposed of %s", Format<T>::name);
    }
  }
}

}  // namespace

void test_products() {
  Random random(11);
  for (std::int64_t m = 1; m <= 2 * tile_rows + 6; m += m < tile_rows + 2 ? 1 : 3) {
    for (std::int64_t n = 1; n <= 2 * tile_columns + 2; n += n < lanes ? 3 : lanes / 2 + 1) {
      for (const std::int64_t k : {1, 2, 3, 31, 32, 33, 67}) {
        for (const bool accumulate : {false, true}) {
          check_product<float>({m, n, k}, accumulate, random);
          check_product<bfloat16>({m, n, k}, accumulate, random);
          check_product_by_columns({m, n, k}, accumulate, random);
        }
      }
    }
  }
  check_product<bfloat16>({70, 5 * lanes + 1, 97}, true, random);  // AMX: several tiles and both remainders
  check_product<float16>({9, 19, 21}, false, random);
  for (const Shape shape : {Shape{1, 1, 1}, Shape{5, 19, 7}, Shape{17, 33, 37}, Shape{32, 64, 64}, Shape{3, 35, 70}}) {
    for (const int order : {0, 1, 2}) {
      check_packing<float, float>(shape, order, random);
      check_packing<float, bfloat16>(shape, order, random);
      check_packing<float, float16>(shape, order, random);
      check_packing<bfloat16, float>(shape, order, random);
      check_packing<bfloat16, bfloat16>(shape, order, random);
    }
    check_copy_out<float>(shape.m, shape.n, random);
    check_copy_out<bfloat16>(shape.m, shape.n, random);
    check_copy_out<float16>(shape.m, shape.n, random);
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
