// Products in fp32 without tensor cores: a block of 256 threads computes a 64x64 tile, each thread four rows by four
// columns. Operands are functions of position, so that any strides and dtypes serve, and are staged in shared memory in
// slices of the depth.
#pragma once

#include "cuda/element.cuh"
#include "cuda/warp.cuh"

namespace bigmodel::cuda {

inline constexpr int plain_threads = 256, plain_tile = 64, plain_depth = 16;
// Rows of shared memory: four more floats than a tile has, so that they begin in different banks and stay aligned.
inline constexpr int plain_pitch = plain_tile + 4;

struct PlainStage {
  float left[plain_depth][plain_pitch], right[plain_depth][plain_pitch];
};

// A whole tile, [depth][row]: what one product leaves for the next to take as its left operand. The place of four rows
// is exclusive-ored with the number of their four depths: lanes whose columns become the depth store every fourth
// depth, eight of them at a time, and these so lie in different banks.
struct PlainTile {
  float memory[plain_tile][plain_tile];

  __device__ static int place(int depth, int row) { return row ^ (depth & 28); }
  __device__ float at(int depth, int row) const { return memory[depth][place(depth, row)]; }
  // Four rows, from a multiple of four on, at depth first + k, where first is a multiple of 16 and k below it: what is
  // left to compute for each k is known to the compiler, or the same for four of them.
  __device__ const float* four(int first, int k, int row) const {
    return memory[first] + k * plain_tile + place(k, place(first, row));
  }
  __device__ void put(int depth, int row, float4 four) {
    *reinterpret_cast<float4*>(&memory[depth][place(depth, row)]) = four;
  }
};

// The four rows and the four columns of a thread.
__device__ inline int plain_row() { return static_cast<int>(threadIdx.x) / 16 * 4; }
__device__ inline int plain_column() { return static_cast<int>(threadIdx.x) % 16 * 4; }

struct PlainAccumulators {
  float at[4][4];

  __device__ void clear() {
    for_each([](float& x, int, int) { x = 0.0f; });
  }
  // body(element, row, column)
  template <class Body>
  __device__ void for_each(Body body) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) body(at[i][j], plain_row() + i, plain_column() + j);
    }
  }
  // From the thread's own rows and columns on, at one depth.
  __device__ void add_product(const float* left, const float* right) {
    const float4 a = *reinterpret_cast<const float4*>(left), b = *reinterpret_cast<const float4*>(right);
    const float rows[4] = {a.x, a.y, a.z, a.w}, columns[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) at[i][j] = fmaf(rows[i], columns[j], at[i][j]);
    }
  }
  // To shared memory as the left operand of another product, whose depth are these columns; or, transposed, these rows.
  __device__ void store(PlainTile& tile) {
#pragma unroll
    for (int j = 0; j < 4; ++j) tile.put(plain_column() + j, plain_row(), {at[0][j], at[1][j], at[2][j], at[3][j]});
  }
  __device__ void store_transposed(PlainTile& tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) tile.put(plain_row() + i, plain_column(), {at[i][0], at[i][1], at[i][2], at[i][3]});
  }
};

// One slice of an operand. Neighbouring threads take neighbours in depth, or in rows: whichever lie side by side. Of
// the depth they take eight, so that the four rows of a warp lie in different banks.
template <bool DepthInside, class Operand>
__device__ inline void stage_slice(float (&slice)[plain_depth][plain_pitch], int first_depth, Operand operand) {
  constexpr int depths = DepthInside ? 8 : plain_threads / plain_tile, rows = plain_threads / depths;
  const unsigned thread = threadIdx.x;
  const auto my_row = static_cast<int>(DepthInside ? thread / depths : thread % rows);
  const auto my_depth = static_cast<int>(DepthInside ? thread % depths : thread / rows);
#pragma unroll
  for (int depth = my_depth; depth < my_depth + plain_depth; depth += depths) {
#pragma unroll
    for (int row = my_row; row < my_row + plain_tile; row += rows)
      slice[depth][row] = operand(row, first_depth + depth);
  }
}

// c += left right^T over the depth. left(row, depth) and right(column, depth) are asked within the tile and up to the
// next whole slice of the depth, and give 0 outside.
template <bool LeftDepthInside, bool RightDepthInside, class Left, class Right>
__device__ void plain_multiply(PlainAccumulators& c, PlainStage& stage, int depth, Left left, Right right) {
  for (int first = 0; first < depth; first += plain_depth) {
    __syncthreads();  // the stage may still be read
    stage_slice<LeftDepthInside>(stage.left, first, left);
    stage_slice<RightDepthInside>(stage.right, first, right);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < plain_depth; ++k) {
      c.add_product(stage.left[k] + plain_row(), stage.right[k] + plain_column());
    }
  }
}

// The same with a left operand in shared memory already, written before the last barrier.
template <bool RightDepthInside, class Right>
__device__ void plain_multiply(PlainAccumulators& c, const PlainTile& left, PlainStage& stage, int depth, Right right) {
  for (int first = 0; first < depth; first += plain_depth) {
    __syncthreads();
    stage_slice<RightDepthInside>(stage.right, first, right);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < plain_depth; ++k) {
      c.add_product(left.four(first, k, plain_row()), stage.right[k] + plain_column());
    }
  }
}

}  // namespace bigmodel::cuda
