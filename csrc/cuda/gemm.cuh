// Matrix products on tensor cores, c = left right^T: left [rows, depth], right [columns, depth]. A block computes a
// tile of c, its warps parts of it; slices of the depth pass through a pipeline. What happens to a finished row is an
// epilogue's business.
#pragma once

#include "bigmodel/tensor.h"
#include "cuda/epilogue.cuh"
#include "cuda/launch.cuh"
#include "cuda/pack_rows.h"
#include "cuda/pipeline.cuh"
#include "cuda/tile.cuh"

namespace bigmodel::cuda {

// How an operand lies in memory: along the depth, or along its rows (columns of c, for the right one).
enum class Inside { depth, rows };

// An operand that can be copied in chunks of 128 bits.
template <class T>
struct Operand {
  const T* data;
  std::int64_t stride;  // of rows (Inside::depth) or of the depth (Inside::rows)
};

// A tile of Rows rows (depth inside) or Rows columns (rows inside), and how to copy and read its slices. Threads: of
// the block, all of which copy.
template <class T, Inside Kind, int Rows, int Depth, int Threads>
struct Slice {
  using Tile = std::conditional_t<Kind == Inside::depth, SharedTile<T, Rows, Depth>, SharedTile<T, Depth, Rows>>;

  const T* first;  // the operand's element in the tile's first row at depth 0
  std::int64_t stride;
  int rows;  // of the tile, that are there

  __device__ Slice(const Operand<T>& operand, std::int64_t first_row, std::int64_t end_row)
      : first(operand.data + first_row * (Kind == Inside::depth ? operand.stride : 1)),
        stride(operand.stride),
        rows(static_cast<int>(min(end_row - first_row, std::int64_t(Rows)))) {}

  __device__ void copy(const Tile& tile, std::int64_t depth, std::int64_t end_depth) const {
    const auto left = static_cast<int>(min(end_depth - depth, std::int64_t(Depth)));
    const auto thread = static_cast<int>(threadIdx.x);
    if constexpr (Kind == Inside::depth) {
      copy_rows<Threads>(thread, tile, first + depth, 0, stride, rows, left);
    } else {
      copy_rows<Threads>(thread, tile, first, depth, stride, left, rows);
    }
  }
  // Operands of the part of the tile that begins at `first_row`.
  __device__ static void left(std::uint32_t (&a)[4], const Tile& tile, int first_row, int row, int depth) {
    if constexpr (Kind == Inside::depth) {
      load_left(a, tile.from_row(first_row), row, depth);
    } else {
      load_left_transposed(a, tile, first_row + row, depth);
    }
  }
  __device__ static void right(std::uint32_t (&b)[4], const Tile& tile, int first_column, int column, int depth) {
    if constexpr (Kind == Inside::depth) {
      load_right(b, tile.from_row(first_column), column, depth);
    } else {
      load_right_transposed(b, tile, first_column + column, depth);
    }
  }
};

// The tile of c that a block computes, and what its warps do. Rights: products that share the left operand.
template <int Rows, int Columns, int WarpRows, int WarpColumns, int Rights>
struct GemmShape {
  static constexpr int rows = Rows, columns = Columns, warp_rows = WarpRows, warp_columns = WarpColumns;
  static constexpr int rights = Rights, stages = 3;
  static constexpr int depth_bytes = 64;  // of a row of a slice
  static constexpr int warps_across = Columns / WarpColumns, warps = Rows / WarpRows * warps_across;
  static constexpr int threads = warps * warp_size;
  static constexpr int stage_bytes = (Rows + Rights * Columns) * depth_bytes;
  // Each warp turns its accumulators from the tensor cores' order into rows, sixteen at a time.
  static constexpr int room_size = 16 * WarpColumns;
  static constexpr int shared_bytes(int stages) {
    const int ring = stages * stage_bytes, turning = 4 * Rights * warps * room_size;
    return ring > turning ? ring : turning;
  }
  // Where the room holds an element. Chunks of four are exclusive-ored with the row, so that neither the pairs that
  // accumulators store (four rows at once) nor the two chunks that a lane reads (of two rows at once) meet in a bank.
  __device__ static int place(int row, int column) {
    static_assert(WarpColumns == 32, "a row is all banks");
    const int chunk = column / 4 ^ (row % 4 * 2 + row % 2);
    return row * WarpColumns + chunk * 4 + column % 4;
  }
};

template <class T, int Rights, class Epilogue>
struct GemmParams {
  Operand<T> left, right[Rights];
  std::int64_t rows, columns, depth;
  int row_tiles, column_tiles, stages;
  Epilogue epilogue;
};

// A block's tile: neighbours in a grid share operands in the cache, so eight rows of tiles are walked column by column.
struct TilePlace {
  std::int64_t row, column;

  __device__ TilePlace(int block, int row_tiles, int column_tiles) {
    constexpr int together = 8;
    const int group = block / (together * column_tiles);
    const int first = group * together, height = min(together, row_tiles - first);
    const int within = block - first * column_tiles;
    row = first + within % height;
    column = within / height;
  }
};

// The accumulators of a warp.
template <class Shape>
struct WarpProducts {
  Accumulators<Shape::warp_columns> at[Shape::rights][Shape::warp_rows / 16];
};

// Sixteen rows of a warp's products, which lie in shared memory, through the epilogue, N elements at a time.
template <int N, class Shape, class Epilogue>
__device__ void finish_rows(const Epilogue& epilogue, const float* room, std::int64_t first_row, std::int64_t rows,
                            int first_column) {
  constexpr int chunks = Shape::warp_columns / N;
#pragma unroll 1
  for (int i = lane_id(); i < 16 * chunks; i += warp_size) {
    const std::int64_t row = first_row + i / chunks;
    const int column = first_column + i % chunks * N;
    if (!reduces_rows<Epilogue> && (row >= rows || column >= epilogue.columns)) continue;
    float x[Shape::rights][N];
#pragma unroll
    for (int which = 0; which < Shape::rights; ++which) {
      const float* const from = room + which * Shape::room_size;
      if constexpr (N == 1) {
        x[which][0] = from[Shape::place(i / chunks, i % chunks)];
      } else {
#pragma unroll
        for (int j = 0; j < N; j += 4) {
          const float* const at = from + Shape::place(i / chunks, i % chunks * N + j);
          const float4 four = *reinterpret_cast<const float4*>(at);
          x[which][j] = four.x, x[which][j + 1] = four.y, x[which][j + 2] = four.z, x[which][j + 3] = four.w;
        }
      }
    }
    if constexpr (Shape::rights == 1) {
      epilogue(row, column, x[0]);
    } else {
      epilogue(row, column, x[0], x[1]);
    }
  }
}

// A warp's products, from (first_row, first_column) on, from accumulators to rows and through the epilogue.
template <class Shape, class T, class Epilogue>
__device__ void finish_tile(const GemmParams<T, Shape::rights, Epilogue>& p, WarpProducts<Shape>& c, float* shared,
                            std::int64_t first_row, int first_column) {
  constexpr int row_blocks = Shape::warp_rows / 16;
  float* const room = shared + warp_id() * Shape::rights * Shape::room_size;
  // Not unrolled: the epilogue's code stands here once, and the accumulators' registers are picked by comparison.
#pragma unroll 1
  for (int block = 0; block < row_blocks; ++block) {
#pragma unroll
    for (int i = 0; i < Shape::rights * row_blocks; ++i) {
      if (i % row_blocks != block) continue;
      const std::uint32_t to = ptx::shared_address(room + i / row_blocks * Shape::room_size);
      c.at[i / row_blocks][i % row_blocks].for_each_pair([&](float first, float second, int half, int column) {
        ptx::store_pair(to + 4 * Shape::place(lane_id() / 4 + 8 * half, column), first, second);
      });
    }
    __syncwarp();
    if (p.epilogue.packed) {
      finish_rows<epilogue_elements, Shape>(p.epilogue, room, first_row + 16 * block, p.rows, first_column);
    } else {
      finish_rows<1, Shape>(p.epilogue, room, first_row + 16 * block, p.rows, first_column);
    }
    __syncwarp();
  }
}

template <class T, Inside Left, Inside Right, class Shape, class Epilogue>
__global__ __launch_bounds__(Shape::threads, ptx::is_sm_75&& Shape::threads == 128 ? 5 : 0) void gemm_kernel(
    const __grid_constant__ GemmParams<T, Shape::rights, Epilogue> p) {
  constexpr int slice_depth = Shape::depth_bytes / sizeof(T);
  using LeftSlice = Slice<T, Left, Shape::rows, slice_depth, Shape::threads>;
  using RightSlice = Slice<T, Right, Shape::columns, slice_depth, Shape::threads>;
  constexpr int row_blocks = Shape::warp_rows / 16;
  extern __shared__ __align__(128) unsigned char shared[];
  const std::uint32_t ring = ptx::shared_address(shared);
  const TilePlace tile(static_cast<int>(blockIdx.x), p.row_tiles, p.column_tiles);
  const std::int64_t first_row = tile.row * Shape::rows, first_column = tile.column * Shape::columns;
  const int warp_row = warp_id() / Shape::warps_across * Shape::warp_rows;
  const int warp_column = warp_id() % Shape::warps_across * Shape::warp_columns;

  const auto left_at = [&](int slot) { return typename LeftSlice::Tile(ring + slot * Shape::stage_bytes); };
  const auto right_at = [&](int slot, int which) {
    const int before = (Shape::rows + which * Shape::columns) * Shape::depth_bytes;
    return typename RightSlice::Tile(ring + slot * Shape::stage_bytes + before);
  };
  const auto fetch = [&](int item, int slot) {
    const std::int64_t depth = std::int64_t(item) * slice_depth;
    if (depth >= p.depth) return;
    LeftSlice(p.left, first_row, p.rows).copy(left_at(slot), depth, p.depth);
#pragma unroll
    for (int which = 0; which < Shape::rights; ++which) {
      RightSlice(p.right[which], first_column, p.columns).copy(right_at(slot, which), depth, p.depth);
    }
  };
  Pipeline pipeline(p.stages, fetch);

  WarpProducts<Shape> c;
#pragma unroll
  for (int which = 0; which < Shape::rights; ++which) {
#pragma unroll
    for (int block = 0; block < row_blocks; ++block) c.at[which][block].clear();
  }
  for (std::int64_t depth = 0; depth < p.depth; depth += slice_depth) {
    const int slot = pipeline.step(fetch);
// The addresses of both steps would not fit into registers in TF32, nor, beside two blocks, on sm_75.
#pragma unroll(sizeof(T) == 2 && !ptx::is_sm_75 ? 2 : 1)
    for (int step = 0; step < slice_depth; step += step_depth<T>) {
      std::uint32_t a[row_blocks][4];
#pragma unroll
      for (int block = 0; block < row_blocks; ++block) {
        LeftSlice::left(a[block], left_at(slot), warp_row, 16 * block, step);
      }
#pragma unroll
      for (int which = 0; which < Shape::rights; ++which) {
#pragma unroll
        for (int column = 0; column < Shape::warp_columns; column += 16) {
          std::uint32_t b[4];
          RightSlice::right(b, right_at(slot, which), warp_column, column, step);
#pragma unroll
          for (int block = 0; block < row_blocks; ++block) {
            ptx::multiply_add<T>(c.at[which][block].at[column / 8], a[block], b[0], b[1]);
            ptx::multiply_add<T>(c.at[which][block].at[column / 8 + 1], a[block], b[2], b[3]);
          }
        }
      }
    }
  }

  ptx::wait_for_copies<0>();
  __syncthreads();  // the ring becomes room to turn accumulators into rows
  // Where a large tile lies is found again: over the loop it would take registers. Of agreed() the compiler cannot know
  // that it gives the same. A small tile's kernel is short of registers here instead (sm_80).
  const int block = static_cast<int>(blockIdx.x);
  const TilePlace done = Shape::threads > 128 ? TilePlace(agreed(block), p.row_tiles, p.column_tiles) : tile;
  finish_tile<Shape>(p, c, reinterpret_cast<float*>(shared), done.row * Shape::rows + warp_row,
                     static_cast<int>(done.column * Shape::columns) + warp_column);
}

}  // namespace bigmodel::cuda
