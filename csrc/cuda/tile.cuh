// Tiles in shared memory, of 16-bit elements or of fp32 that products take as TF32, and the operands of tensor-core
// products in registers.
//
// A tile's rows are cut into chunks of 16 bytes, and the chunk's place within its row is exclusive-ored with the row's
// number, so that the same chunk of eight neighbouring rows lies in eight different groups of banks: ldmatrix and the
// copies of whole rows then meet no bank conflict. ldmatrix cannot turn elements of 32 bits: a lane reads those of a
// transposed operand one by one, a warp two neighbouring chunks of four rows. Hence their other order of rows, in which
// such pairs of chunks lie apart for rows 0 to 3 and 4 to 7, and for the even and the odd ones.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/division.cuh"
#include "cuda/element.cuh"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace bigmodel::cuda {

// Elements of a chunk, and the depth of one product.
template <class T>
inline constexpr int chunk_elements = 16 / sizeof(T);
template <class T>
inline constexpr int step_depth = 2 * chunk_elements<T>;

template <class T, int Rows, int Columns>
struct SharedTile {
  static_assert(sizeof(T) * Columns % 64 == 0, "rows are whole multiples of 64 bytes");
  using Element = T;
  static constexpr int rows = Rows, columns = Columns, chunks = Columns / chunk_elements<T>, elements = Rows * Columns;
  std::uint32_t address;

  SharedTile() = default;
  __device__ explicit SharedTile(std::uint32_t address) : address(address) {}
  __device__ explicit SharedTile(const T* data) : address(ptx::shared_address(data)) {}

  // The rows from `row`, a multiple of eight, on.
  __device__ SharedTile from_row(unsigned row) const {
    return SharedTile(static_cast<std::uint32_t>(address + row * Columns * sizeof(T)));
  }
  // Eight rows of 128 bytes or a multiple meet in the same banks; those of an odd multiple of 64 bytes do in pairs.
  __device__ static unsigned swizzle(unsigned row) {
    if (chunks % 8 != 0) return row / 2 % 4;
    const unsigned four = row / 4 % 2;
    return sizeof(T) == 2 ? row % 8 : (row % 4 ^ four) * 2 + four;
  }
  // In elements.
  __device__ static int offset(unsigned row, unsigned number) {
    return static_cast<int>(row * Columns + (number ^ swizzle(row)) * chunk_elements<T>);
  }
  // The address of a chunk.
  __device__ std::uint32_t chunk(unsigned row, unsigned number) const {
    return address + row * (Columns * sizeof(T)) + (number ^ swizzle(row)) * 16;
  }
  // Of row + lane_row and chunk number + lane_number, where row is a multiple of eight, number of two, and lane_number
  // is 0 or 1. What is the same in all lanes comes last, so that the rest is computed once for many loads and an
  // instruction's own offset does what remains. Tiles begin at multiples of 128 bytes: the exclusive or may be taken of
  // the address itself.
  __device__ std::uint32_t chunk(unsigned row, unsigned number, unsigned lane_row, unsigned lane_number) const {
    constexpr unsigned pitch = Columns * sizeof(T), period = chunks % 8 == 0 ? 8 : 4;
    const std::uint32_t mine = address + lane_row * pitch + (lane_number ^ swizzle(lane_row)) * 16;
    return (mine ^ number % period * 16) + (row * pitch + number / period * period * 16);
  }
};

// Starts copying a tile's rows by all threads of the block. source(row) points to the row's first element in global
// memory, whose chunks are aligned and contiguous, or is null: then the row is zero. So are columns from `width` on,
// a multiple of a chunk. `somewhere` is any address in global memory.
template <class T, int Rows, int Columns, class Source>
__device__ void copy_tile(const SharedTile<T, Rows, Columns>& tile, int width, const T* somewhere, Source source) {
  using Tile = SharedTile<T, Rows, Columns>;
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x); i < Rows * Tile::chunks; i += static_cast<int>(blockDim.x)) {
    const int row = i / Tile::chunks, number = i % Tile::chunks, column = number * chunk_elements<T>;
    const T* const first = source(row);
    const bool valid = first && column < width;
    ptx::copy_async(tile.chunk(row, number), valid ? first + column : somewhere, valid);
  }
}

// The same by `Threads` threads, of which this is number `thread`, from row `first` of a matrix on, whose rows lie
// `stride` apart; rows from `rows` on are zero. A thread copies the same chunk of every few rows, so that little is
// left to compute for each.
template <int Threads, class T, int Rows, int Columns>
__device__ inline void copy_rows(int thread, const SharedTile<T, Rows, Columns>& tile, const T* matrix,
                                 std::int64_t first, std::int64_t stride, int rows, int width) {
  constexpr int chunks = SharedTile<T, Rows, Columns>::chunks, step = Threads / chunks;
  constexpr int passes = ceil_div(Rows, step);
  const int row = thread / chunks, number = thread % chunks;
  if (Threads % chunks != 0 && row >= step) return;
  const int mine =
      number * chunk_elements<T> < width ? rows - row : 0;  // of the rows, those from this thread's first on
  const T* from = matrix + (first + row) * stride + number * chunk_elements<T>;
  const std::uint32_t to = tile.chunk(row, number);
#pragma unroll
  for (int pass = 0; pass < passes; ++pass, from += step * stride) {
    const int below = pass * step;
    if (Rows % step != 0 && row + below >= Rows) return;
    ptx::copy_async(step % 8 == 0 ? to + below * Columns * sizeof(T) : tile.chunk(row + below, number), from,
                    below < mine);
  }
}

// The same by the whole block, which is one or two groups of `Threads`.
template <int Threads, class T, int Rows, int Columns>
__device__ inline void copy_rows_by_groups(const SharedTile<T, Rows, Columns>& tile, const T* matrix,
                                           std::int64_t first, std::int64_t stride, int rows, int width) {
  constexpr int half = Rows / 2;
  const int thread = static_cast<int>(threadIdx.x), groups = static_cast<int>(blockDim.x) / Threads;
#pragma unroll 1
  for (int part = thread / Threads; part < 2; part += groups) {
    const SharedTile<T, half, Columns> to(tile.from_row(part * half).address);
    copy_rows<Threads>(thread % Threads, to, matrix, first + part * half, stride, rows - part * half, width);
  }
}

// In which order two operands of 32 bits take the depth of a step of eight: as it is, or, as accumulators hold the
// columns that become a depth, the even ones before the odd ones. Of 16-bit elements the two are one.
enum class DepthOrder { natural, accumulators };

template <class T>
__device__ inline void round_operands(std::uint32_t (&operands)[4]) {
  if constexpr (std::is_same_v<T, tf32>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) operands[i] = ptx::round_to_tf32(operands[i]);
  }
}

// An element of 32 bits in row `row` + lane_row and column `column` + lane / 4, where row and column are multiples of
// eight.
template <class Tile>
__device__ inline std::uint32_t load_element(const Tile& tile, unsigned row, unsigned column, unsigned lane_row) {
  static_assert(sizeof(typename Tile::Element) == 4 && Tile::chunks % 8 == 0, "or the same banks would meet");
  const unsigned lane_column = threadIdx.x % warp_size / 4;
  return ptx::load_word(tile.chunk(row, column / 4, lane_row, lane_column / 4) + lane_column % 4 * 4);
}

// The left operand of a step: rows [row, row + 16), depth [depth, depth + step_depth) of a tile of rows.
template <class Tile>
__device__ inline void load_left(std::uint32_t (&a)[4], const Tile& tile, unsigned row, unsigned depth) {
  using T = typename Tile::Element;
  const unsigned lane = threadIdx.x % warp_size;
  ptx::load_matrices(a, tile.chunk(row, depth / chunk_elements<T>, lane % 16, lane / 16));
  round_operands<T>(a);
}

// The same from a tile whose rows are the operand's depth.
template <class Tile>
__device__ inline void load_left_transposed(std::uint32_t (&a)[4], const Tile& tile, unsigned row, unsigned depth) {
  using T = typename Tile::Element;
  const unsigned lane = threadIdx.x % warp_size;
  if constexpr (sizeof(T) == 2) {
    const unsigned lane_row = lane % 8 + lane / 16 * 8;
    ptx::load_matrices_transposed(a, tile.chunk(depth, row / chunk_elements<T>, lane_row, lane / 8 % 2));
  } else {
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) a[i] = load_element(tile, depth, row + i % 2 * 8, lane % 4 + i / 2 * 4);
    round_operands<T>(a);
  }
}

// The right operands of two neighbouring steps, {b0, b1} of columns [column, column + 8) and of the next eight. From a
// tile whose rows are the operand's columns:
template <class Tile>
__device__ inline void load_right(std::uint32_t (&b)[4], const Tile& tile, unsigned column, unsigned depth) {
  using T = typename Tile::Element;
  const unsigned lane = threadIdx.x % warp_size;
  ptx::load_matrices(b, tile.chunk(column, depth / chunk_elements<T>, lane % 8 + lane / 16 * 8, lane / 8 % 2));
  round_operands<T>(b);
}

// From a tile whose rows are the operand's depth:
template <DepthOrder Order = DepthOrder::natural, class Tile>
__device__ inline void load_right_transposed(std::uint32_t (&b)[4], const Tile& tile, unsigned column, unsigned depth) {
  using T = typename Tile::Element;
  const unsigned lane = threadIdx.x % warp_size;
  if constexpr (sizeof(T) == 2) {
    ptx::load_matrices_transposed(b, tile.chunk(depth, column / chunk_elements<T>, lane % 16, lane / 16));
  } else {
    constexpr unsigned pitch = Order == DepthOrder::natural ? 1 : 2, second = Order == DepthOrder::natural ? 4 : 1;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      b[i] = load_element(tile, depth, column + i / 2 * 8, lane % 4 * pitch + i % 2 * second);
    }
    round_operands<T>(b);
  }
}

// Sixteen rows of fp32 accumulators of one warp. A thread holds of each 16x8 block the elements [0], [1] in row
// lane / 4 and [2], [3] eight rows below, in columns 2 (lane % 4) and the next.
template <int Columns>
struct Accumulators {
  static constexpr int blocks = Columns / 8;
  float at[blocks][4];

  __device__ void clear() {
#pragma unroll
    for (int block = 0; block < blocks; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) at[block][i] = 0.0f;
    }
  }
  // body(element, row half 0 or 1, column)
  template <class Body>
  __device__ void for_each(Body body) {
    const int first = 2 * (lane_id() % 4);
#pragma unroll
    for (int block = 0; block < blocks; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) body(at[block][i], i / 2, 8 * block + first + i % 2);
    }
  }
  // body(element, its right neighbour, row half, column)
  template <class Body>
  __device__ void for_each_pair(Body body) const {
    const int first = 2 * (lane_id() % 4);
#pragma unroll
    for (int block = 0; block < blocks; ++block) {
      body(at[block][0], at[block][1], 0, 8 * block + first);
      body(at[block][2], at[block][3], 1, 8 * block + first);
    }
  }
};

// The left operand made of accumulators, their columns [step_depth step, step_depth (step + 1)) in that order:
// probabilities never leave the registers.
template <class T, int Columns>
__device__ inline void as_left(std::uint32_t (&a)[4], const Accumulators<Columns>& c, int step) {
  if constexpr (sizeof(T) == 2) {
    const float (&left)[4] = c.at[2 * step];
    const float (&right)[4] = c.at[2 * step + 1];
    a[0] = pack2<T>(left[0], left[1]);
    a[1] = pack2<T>(left[2], left[3]);
    a[2] = pack2<T>(right[0], right[1]);
    a[3] = pack2<T>(right[2], right[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = __float_as_uint(c.at[step][i % 2 * 2 + i / 2]);
    round_operands<T>(a);
  }
}

// c += left(step) right(column, depth): left(a, step) makes the left operand of a step, right(b, column, depth) the
// right ones of the columns [column, column + 16).
template <class T, int Depth, int Columns, class Left, class Right>
__device__ inline void multiply_steps(Accumulators<Columns>& c, const Left& left, const Right& right) {
#pragma unroll
  for (int step = 0; step < Depth / step_depth<T>; ++step) {
    std::uint32_t a[4];
    left(a, step);
#pragma unroll
    for (int block = 0; block < Columns / 8; block += 2) {
      std::uint32_t b[4];
      right(b, 8 * block, step_depth<T> * step);
      ptx::multiply_add<T>(c.at[block], a, b[0], b[1]);
      ptx::multiply_add<T>(c.at[block + 1], a, b[2], b[3]);
    }
  }
}

// c += left(step) right^T, where the rows of `right` are the columns of c.
template <class T, int Depth, int Columns, class Tile, class Left>
__device__ inline void multiply(Accumulators<Columns>& c, const Tile& right, const Left& left) {
  multiply_steps<T, Depth>(
      c, left, [&](std::uint32_t (&b)[4], unsigned column, unsigned depth) { load_right(b, right, column, depth); });
}

// c += left(step) right, where the rows of `right` are the depth.
template <class T, int Depth, DepthOrder Order, int Columns, class Tile, class Left>
__device__ inline void multiply_transposed(Accumulators<Columns>& c, const Tile& right, const Left& left) {
  multiply_steps<T, Depth>(c, left, [&](std::uint32_t (&b)[4], unsigned column, unsigned depth) {
    load_right_transposed<Order>(b, right, column, depth);
  });
}

// c += left right, with accumulators on the left.
template <class T, int Depth, int Columns, class Tile>
__device__ inline void multiply_transposed(Accumulators<Columns>& c, const Accumulators<Depth>& left,
                                           const Tile& right) {
  multiply_transposed<T, Depth, DepthOrder::accumulators>(
      c, right, [&](std::uint32_t (&a)[4], int step) { as_left<T>(a, left, step); });
}

// A warp's sixteen rows to global memory, through sixteen rows of shared memory of its own: there the accumulators are
// turned into whole chunks. to(row) points to where a row begins, or is null; width is how many columns there are.
template <class T, int Columns, class To>
__device__ void store_rows(Accumulators<Columns>& c, T* room, int width, bool packed, To to) {
  using Tile = SharedTile<T, 16, Columns>;
  const int lane = lane_id();
  c.for_each_pair([&](float first, float second, int half, int column) {
    const int offset = Tile::offset(lane / 4 + 8 * half, column / chunk_elements<T>) + column % chunk_elements<T>;
    if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<std::uint32_t*>(room + offset) = pack2<T>(first, second);
    } else {
      ptx::store_pair(ptx::shared_address(room + offset), first, second);
    }
  });
  __syncwarp();
#pragma unroll 4
  for (int i = lane; i < 16 * Tile::chunks; i += warp_size) {
    const int column = i % Tile::chunks * chunk_elements<T>;
    T* const row = to(i / Tile::chunks);
    if (!row || column >= width) continue;
    const auto pack = *reinterpret_cast<const Pack<T>*>(room + Tile::offset(i / Tile::chunks, i % Tile::chunks));
    if (packed) {
      *reinterpret_cast<Pack<T>*>(row + column) = pack;
    } else {
#pragma unroll
      for (int j = 0; j < chunk_elements<T>; ++j) {
        if (column + j < width) row[column + j] = pack.element[j];
      }
    }
  }
  __syncwarp();
}

}  // namespace bigmodel::cuda
