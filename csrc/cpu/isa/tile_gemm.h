// The tile GEMM: C[m x n] (+)= lhs[m x k] rhs[k x n], C in fp32 row major, in the element type that the CPU target
// multiplies best. Every product of every kernel goes through it.
//
// The lanes of a vector run along n; an lhs element is broadcast. A register tile is tile_rows x tile_columns of C.
// Operands are laid out by pack.h, or used in place where they already are so:
//   lhs by rows:     element (i, k) at lhs[i * stride + k]
//   lhs by columns:  element (i, k) at lhs[k * stride + i]   (Element float only)
//   rhs:             lane (k / group, j) at rhs[(k / group) * stride + j], a lane being `group` consecutive k of column
//   j
// where Element is float (group 1) or, on targets with a bf16 dot product, bfloat16 (group 2: 32 bits hold two k).
// k must be a multiple of k_step: pack.h fills up with zeros. n is rounded up to whole vectors: rhs and C rows must
// have that many columns (what they hold past n is arbitrary but finite for rhs).
#pragma once

#include "cpu/isa/vec.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// The element type in which products of tensors of type T are computed.
template <class T>
struct Multiply {
  using Element = float;
};

template <class Element>
struct Layout;

#if defined(__AVX512F__)
inline constexpr int tile_rows = 14, tile_vectors = 2;
#elif defined(__aarch64__)
inline constexpr int tile_rows = 6, tile_vectors = 4;
#else
inline constexpr int tile_rows = 6, tile_vectors = 2;
#endif
inline constexpr int tile_columns = tile_vectors * lanes;

// Where C lies. Its lines are asked for while the products are formed if they come from the second-level cache, and the
// products added to them at the end; from the first-level cache that costs more than it saves (2 % of attention's
// gradients).
enum class SumsIn { l1, l2 };

template <>
struct Layout<float> {
  using Lane = float;                     // what one 32-bit lane of an rhs holds
  static constexpr int group = 1;         // consecutive k in one lane
  static constexpr int k_step = 1;        // k is padded to a multiple of it
  static constexpr int rows = tile_rows;  // of C in a register tile
  static constexpr bool amx = false;      // whether AMX's tiles hold it, not vector registers
};

// Whether a register tile fills AVX-512's vector registers.
template <class Element>
inline constexpr bool fills_avx512 = lanes == 16 && !Layout<Element>::amx;

// A vector of lhs or rhs lanes of Element float; tile_gemm_bf16.h has the same three for bfloat16.
BIGMODEL_INLINE F32 broadcast(const float* p) { return set1(*p); }
BIGMODEL_INLINE F32 load_lanes(const float* p) { return load(p); }
BIGMODEL_INLINE F32 multiply_add(F32 a, F32 b, F32 sum) { return fma(a, b, sum); }

}  // namespace bigmodel::cpu::BIGMODEL_TARGET

#include "cpu/isa/tile_gemm_bf16.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// What a tile asks memory for while it multiplies, once in `steps_of_turn` steps of its loop: nothing, or the line so
// many lanes behind the rhs that it reads.
inline constexpr int steps_of_turn = 4;
struct AskForNothing {
  static constexpr bool asks = false;
};
struct AskAhead {
  static constexpr bool asks = true;
  std::int64_t lanes_ahead;
  template <class Lane>
  BIGMODEL_INLINE_MEMBER void operator()(const Lane* rhs) const {
    __builtin_prefetch(rhs + lanes_ahead);
  }
};

// One register tile of `rows` x (vectors * lanes).
template <SumsIn where, int rows, int vectors, bool by_rows, class Element, class Lane, class Ask = AskForNothing>
BIGMODEL_INLINE void multiply_tile(std::int64_t k, const Element* lhs, std::int64_t lhs_stride, const Lane* rhs,
                                   std::int64_t rhs_stride, float* c, std::int64_t c_stride, bool accumulate,
                                   [[maybe_unused]] Ask ask = {}) {
  constexpr int group = Layout<Element>::group;
  F32 sums[rows][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      float* const at = c + i * c_stride + v * lanes;
      if constexpr (where == SumsIn::l2) __builtin_prefetch(at, 1);
      sums[i][v] = where == SumsIn::l1 && accumulate ? load(at) : zero();
    }
  }
  const auto step = [&]() BIGMODEL_INLINE_LAMBDA {
    decltype(load_lanes(rhs)) b[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) b[v] = load_lanes(rhs + v * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const auto a = broadcast(by_rows ? lhs + i * lhs_stride : lhs + i);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[i][v] = multiply_add(a, b[v], sums[i][v]);
    }
    lhs += by_rows ? group : lhs_stride;
    rhs += rhs_stride;
  };
  // By rows, addresses take so many registers that a counter of its own would live in memory (fp32: 3 % slower).
  const Element* const end = lhs + k;
  if constexpr (Ask::asks) {
    for (const Element* const turns = end - k % (steps_of_turn * group); lhs != turns;) {
      ask(rhs);
#pragma GCC unroll 4
      for (int i = 0; i < steps_of_turn; ++i) step();
    }
  }
#pragma GCC unroll 4
  for (std::int64_t p = 0; by_rows ? lhs != end : p < k; p += group) step();
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      float* const at = c + i * c_stride + v * lanes;
      store(at, where == SumsIn::l2 && accumulate ? sums[i][v] + load(at) : sums[i][v]);
    }
  }
}

// One whole register tile that asks for a line of the rhs, `lanes_ahead` behind what it reads, every turn.
template <class Element, class Lane>
static __attribute__((noinline)) void multiply_tile_asking(std::int64_t k, const Element* lhs, std::int64_t lhs_stride,
                                                           const Lane* rhs, std::int64_t lanes_ahead, float* c,
                                                           std::int64_t c_stride, bool accumulate) {
  multiply_tile<SumsIn::l2, tile_rows, tile_vectors, true>(k, lhs, lhs_stride, rhs, tile_columns, c, c_stride,
                                                           accumulate, AskAhead{lanes_ahead});
}

// The last rows of C: fewer than tile_rows of them.
template <SumsIn where, int rows, int vectors, bool by_rows, class Element, class Lane>
BIGMODEL_INLINE void multiply_last_rows(std::int64_t m, std::int64_t k, const Element* lhs, std::int64_t lhs_stride,
                                        const Lane* rhs, std::int64_t rhs_stride, float* c, std::int64_t c_stride,
                                        bool accumulate) {
  if constexpr (rows > 0) {
    if (m == rows) {
      multiply_tile<where, rows, vectors, by_rows>(k, lhs, lhs_stride, rhs, rhs_stride, c, c_stride, accumulate);
    } else {
      multiply_last_rows<where, rows - 1, vectors, by_rows>(m, k, lhs, lhs_stride, rhs, rhs_stride, c, c_stride,
                                                            accumulate);
    }
  }
}

// One column panel of C, `vectors` vectors wide.
template <SumsIn where, int vectors, bool by_rows, class Element, class Lane>
static __attribute__((noinline)) void multiply_panel(std::int64_t m, std::int64_t k, const Element* lhs,
                                                     std::int64_t lhs_stride, const Lane* rhs, std::int64_t rhs_stride,
                                                     float* c, std::int64_t c_stride, bool accumulate) {
  const std::int64_t lhs_tile = tile_rows * (by_rows ? lhs_stride : 1);
  for (; m >= tile_rows; m -= tile_rows, lhs += lhs_tile, c += tile_rows * c_stride) {
    multiply_tile<where, tile_rows, vectors, by_rows>(k, lhs, lhs_stride, rhs, rhs_stride, c, c_stride, accumulate);
  }
  multiply_last_rows<where, tile_rows - 1, vectors, by_rows>(m, k, lhs, lhs_stride, rhs, rhs_stride, c, c_stride,
                                                             accumulate);
}

// The last columns of C: fewer than tile_vectors vectors of them.
template <SumsIn where, int vectors, bool by_rows, class Element, class Lane>
BIGMODEL_INLINE void multiply_last_columns(std::int64_t m, std::int64_t n, std::int64_t k, const Element* lhs,
                                           std::int64_t lhs_stride, const Lane* rhs, std::int64_t rhs_stride, float* c,
                                           std::int64_t c_stride, bool accumulate) {
  if constexpr (vectors > 0) {
    if (n > (vectors - 1) * lanes) {
      multiply_panel<where, vectors, by_rows>(m, k, lhs, lhs_stride, rhs, rhs_stride, c, c_stride, accumulate);
    } else {
      multiply_last_columns<where, vectors - 1, by_rows>(m, n, k, lhs, lhs_stride, rhs, rhs_stride, c, c_stride,
                                                         accumulate);
    }
  }
}

template <SumsIn where, bool by_rows, class Element, class Lane>
BIGMODEL_INLINE void multiply(std::int64_t m, std::int64_t n, std::int64_t k, const Element* lhs,
                              std::int64_t lhs_stride, const Lane* rhs, std::int64_t rhs_stride, float* c,
                              std::int64_t c_stride, bool accumulate) {
  for (; n > tile_columns - lanes; n -= tile_columns, rhs += tile_columns, c += tile_columns) {
    multiply_panel<where, tile_vectors, by_rows>(m, k, lhs, lhs_stride, rhs, rhs_stride, c, c_stride, accumulate);
  }
  if (n > 0) {
    multiply_last_columns<where, tile_vectors - 1, by_rows>(m, n, k, lhs, lhs_stride, rhs, rhs_stride, c, c_stride,
                                                            accumulate);
  }
}

template <SumsIn where = SumsIn::l1>
BIGMODEL_INLINE void multiply_by_rows(std::int64_t m, std::int64_t n, std::int64_t k, const float* lhs,
                                      std::int64_t lhs_stride, const float* rhs, std::int64_t rhs_stride, float* c,
                                      std::int64_t c_stride, bool accumulate) {
  multiply<where, true>(m, n, k, lhs, lhs_stride, rhs, rhs_stride, c, c_stride, accumulate);
}

#if defined(BIGMODEL_BF16_DOT) && !defined(__AMX_BF16__)
template <SumsIn where = SumsIn::l1>
BIGMODEL_INLINE void multiply_by_rows(std::int64_t m, std::int64_t n, std::int64_t k, const bfloat16* lhs,
                                      std::int64_t lhs_stride, const BFloat16Pair* rhs, std::int64_t rhs_stride,
                                      float* c, std::int64_t c_stride, bool accumulate) {
  multiply<where, true>(m, n, k, lhs, lhs_stride, rhs, rhs_stride, c, c_stride, accumulate);
}
#endif

BIGMODEL_INLINE void multiply_by_columns(std::int64_t m, std::int64_t n, std::int64_t k, const float* lhs,
                                         std::int64_t lhs_stride, const float* rhs, std::int64_t rhs_stride, float* c,
                                         std::int64_t c_stride, bool accumulate) {
  multiply<SumsIn::l1, false>(m, n, k, lhs, lhs_stride, rhs, rhs_stride, c, c_stride, accumulate);
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET

#if defined(__AMX_BF16__)
#include "cpu/isa/tile_gemm_amx.h"
#endif
