// c = left right^T in fp32, exactly, with an epilogue.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/plain.cuh"

namespace bigmodel::cuda {

template <class Epilogue>
struct PlainGemmParams {
  Rows<const float> left, right;
  std::int64_t rows, columns, depth;
  int row_tiles, column_tiles;
  Epilogue epilogue;
};

template <bool LeftDepthInside, bool RightDepthInside, class Epilogue>
__global__ __launch_bounds__(plain_threads) void plain_gemm_kernel(
    const __grid_constant__ PlainGemmParams<Epilogue> p) {
  __shared__ __align__(16) PlainStage stage;
  const std::int64_t first_row = static_cast<int>(blockIdx.x) % p.row_tiles * std::int64_t(plain_tile);
  const std::int64_t first_column = static_cast<int>(blockIdx.x) / p.row_tiles * std::int64_t(plain_tile);
  const auto operand = [&](const Rows<const float>& matrix, std::int64_t first, std::int64_t end) {
    return [&matrix, first, end, &p](int row, int depth) {
      const bool inside = first + row < end && depth < p.depth;
      return inside ? matrix.data[(first + row) * matrix.row_stride + depth * matrix.stride] : 0.0f;
    };
  };
  PlainAccumulators c;
  c.clear();
  plain_multiply<LeftDepthInside, RightDepthInside>(c, stage, static_cast<int>(p.depth),
                                                    operand(p.left, first_row, p.rows),
                                                    operand(p.right, first_column, p.columns));
  // Not unrolled: the epilogue's code stands here once, and registers are picked by comparison.
#pragma unroll 1
  for (int i = 0; i < 4; ++i) {
    const std::int64_t row = first_row + plain_row() + i;
    if (!reduces_rows<Epilogue> && row >= p.rows) break;
    float x[4];
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      if (k / 4 == i) x[k % 4] = c.at[k / 4][k % 4];
    }
    const auto column = static_cast<int>(first_column) + plain_column();
    if (p.epilogue.packed) {
      if (reduces_rows<Epilogue> || column < p.epilogue.columns) p.epilogue(row, column, x);
      continue;
    }
#pragma unroll 1
    for (int j = 0; j < 4; ++j) {
      float one[1] = {j == 0 ? x[0] : j == 1 ? x[1] : j == 2 ? x[2] : x[3]};
      if (column + j < p.epilogue.columns) p.epilogue(row, column + j, one);
    }
  }
}

}  // namespace bigmodel::cuda
