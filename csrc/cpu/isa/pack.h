// Moves matrices between tensors of any dtype and strides and the layouts of tile_gemm.h.
#pragma once

#include "cpu/isa/tile_gemm.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

template <class T>
BIGMODEL_INLINE F32 load_up_to(const T* p, std::int64_t count) {
  return count >= lanes ? load(p) : load_first(p, int(count));
}
template <class T>
BIGMODEL_INLINE void store_up_to(T* p, F32 a, std::int64_t count) {
  if (count >= lanes) {
    store(p, a);
  } else {
    store_first(p, a, int(count));
  }
}

// One element of any strides as fp32, through the first lane.
template <class T>
BIGMODEL_INLINE F32 gather(const T* p, std::int64_t stride, std::int64_t count) {
  T buffer[lanes] = {};
  for (std::int64_t i = 0; i < (count < lanes ? count : lanes); ++i) buffer[i] = p[i * stride];
  return load(buffer);
}

// destination[i * destination_stride + j] = source[i * row_stride + j * column_stride] for i < rows, j < columns, and 0
// for columns <= j < round_up(columns, lanes). Rows of unit stride are read along, columns of unit stride are
// transposed in registers, anything else is gathered.
template <class T, class Destination>
static __attribute__((noinline)) void copy_in(std::int64_t rows, std::int64_t columns, const T* source,
                                              std::int64_t row_stride, std::int64_t column_stride,
                                              Destination* destination, std::int64_t destination_stride) {
  if (column_stride != 1 && row_stride == 1) {
    for (std::int64_t j = 0; j < columns; j += lanes) {
      for (std::int64_t i = 0; i < rows; i += lanes) {
        F32 block[lanes];
        if (j + lanes <= columns && i + lanes <= rows) {
          for (int c = 0; c < lanes; ++c) block[c] = load(source + (j + c) * column_stride + i);
        } else {
          for (int c = 0; c < lanes; ++c) {
            block[c] = j + c < columns ? load_up_to(source + (j + c) * column_stride + i, rows - i) : zero();
          }
        }
        transpose(block);
        const std::int64_t last = rows - i < lanes ? rows - i : lanes;
        for (int r = 0; r < last; ++r) store(destination + (i + r) * destination_stride + j, block[r]);
      }
    }
    return;
  }
  const std::int64_t whole = column_stride == 1 ? columns - columns % lanes : 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* row = source + i * row_stride;
    Destination* to = destination + i * destination_stride;
    std::int64_t j = 0;
    for (; j < whole; j += lanes) store(to + j, load(row + j));
    for (; j < columns; j += lanes) {
      store(to + j, column_stride == 1 ? load_first(row + j, int(columns - j))
                                       : gather(row + j * column_stride, column_stride, columns - j));
    }
  }
}

// destination[j * destination_stride + i] = source[i * source_stride + j] for i < rows, j < columns: writes a fp32
// matrix transposed, as T. Source rows hold round_up(rows, lanes) x round_up(columns, lanes) readable elements.
template <class T>
static __attribute__((noinline)) void copy_out_transposed(std::int64_t rows, std::int64_t columns, const float* source,
                                                          std::int64_t source_stride, T* destination,
                                                          std::int64_t destination_stride) {
  for (std::int64_t i = 0; i < rows; i += lanes) {
    const std::int64_t row_count = rows - i < lanes ? rows - i : lanes;
    for (std::int64_t j = 0; j < columns; j += lanes) {
      F32 block[lanes];
      for (int r = 0; r < lanes; ++r) block[r] = r < row_count ? load(source + (i + r) * source_stride + j) : zero();
      transpose(block);
      const std::int64_t column_count = columns - j < lanes ? columns - j : lanes;
      for (int c = 0; c < column_count; ++c) {
        store_up_to(destination + (j + c) * destination_stride + i, block[c], row_count);
      }
    }
  }
}

// The same without transposing: destination[i * destination_stride + j] = source[i * source_stride + j], as T.
template <class T>
static __attribute__((noinline)) void copy_out(std::int64_t rows, std::int64_t columns, const float* source,
                                               std::int64_t source_stride, T* destination,
                                               std::int64_t destination_stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; j += lanes) {
      store_up_to(destination + i * destination_stride + j, load(source + i * source_stride + j), columns - j);
    }
  }
}

// ---- operands of tile_gemm.h, in the layout of their Element ----
//
// pack_lhs: element (i, k) = source[i * row_stride + k * k_stride] to destination[i * destination_stride + k], zero for
// k up to lhs_width<Element>(k). Give the strides of a transposed matrix the other way round.
// pack_rhs: element (k, j) = source[k * k_stride + j * n_stride] to lane (k / group, j) at
// destination[k / group * destination_stride + j]; rhs_rows<Element>(k) rows of round_up(n, lanes) lanes are written,
// with zeros past k and n.
// Sources are tensors of any dtype or fp32 scratch. What is fp32 for Element float already can be used in place.

template <class Element>
constexpr std::int64_t packed_k(std::int64_t k) {
  return round_up(k, Layout<Element>::k_step);
}

// Elements that a packed lhs row takes.
template <class Element>
constexpr std::int64_t lhs_width(std::int64_t k) {
  return round_up(k, Layout<Element>::k_step > lanes ? Layout<Element>::k_step : lanes);
}

// Rows of lanes that a packed rhs takes.
template <class Element>
constexpr std::int64_t rhs_rows(std::int64_t k) {
  return packed_k<Element>(k) / Layout<Element>::group;
}

template <class T>
BIGMODEL_INLINE void pack_lhs(std::int64_t rows, std::int64_t k, const T* source, std::int64_t row_stride,
                              std::int64_t k_stride, float* destination, std::int64_t destination_stride) {
  copy_in(rows, k, source, row_stride, k_stride, destination, destination_stride);
}

template <class T>
BIGMODEL_INLINE void pack_rhs(std::int64_t k, std::int64_t n, const T* source, std::int64_t k_stride,
                              std::int64_t n_stride, float* destination, std::int64_t destination_stride) {
  copy_in(k, n, source, k_stride, n_stride, destination, destination_stride);
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET

#include "cpu/isa/pack_bf16.h"
