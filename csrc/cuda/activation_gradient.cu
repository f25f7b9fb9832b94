#include "cuda/activation_gradient.cuh"

#include <algorithm>

#include "cuda/activation.cuh"
#include "cuda/launch.cuh"
#include "cuda/partial_sums.cuh"
#include "cuda/rows.cuh"
#include "cuda/warp.cuh"

namespace bigmodel::cuda {
namespace {

constexpr int warps = 8, threads = warps * warp_size;

template <class T>
struct Params {
  Rows<T> grad_output, preactivation, grad_z;
  Activation activation;
  float* partial;  // [blocks of rows, columns]
  std::int64_t rows;
  int columns, column_blocks, row_blocks;
};

// A warp takes every eighth row of a block of rows, a lane N neighbouring columns.
template <class T, int N>
__global__ __launch_bounds__(threads) void activation_gradient_kernel(const __grid_constant__ Params<T> p) {
  __shared__ float room[warps][warp_size * N];
  const int first_column = static_cast<int>(blockIdx.x) % p.column_blocks * warp_size * N;
  const std::int64_t row_block = static_cast<int>(blockIdx.x) / p.column_blocks;
  const int column = first_column + lane_id() * N;
  float sums[N] = {};
  if (column < p.columns) {
    for (std::int64_t row = row_block * warps + warp_id(); row < p.rows; row += std::int64_t(p.row_blocks) * warps) {
      float grad[N];
      load(p.grad_output, row, column, grad);
      if (p.activation != Activation::none) {
        float z[N];
        load(p.preactivation, row, column, z);
        with_activation(p.activation, [&](auto function) {
#pragma unroll
          for (int i = 0; i < N; ++i) grad[i] *= function(z[i]).slope;
        });
      }
      if (p.grad_z.data) store(p.grad_z, row, column, grad);
#pragma unroll
      for (int i = 0; i < N; ++i) sums[i] += grad[i];
    }
  }
  if (!p.partial) return;
#pragma unroll
  for (int i = 0; i < N; ++i) room[warp_id()][lane_id() * N + i] = sums[i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < warp_size * N; i += threads) {
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < warps; ++warp) sum += room[warp][i];
    if (first_column + i < p.columns) p.partial[row_block * p.columns + first_column + i] = sum;
  }
}

// Decided by the shape alone, since it decides the order of additions.
int row_block_count(std::int64_t rows) {
  return static_cast<int>(std::min<std::int64_t>(ceil_div(rows, 4 * warps), 64));
}

template <class T, int N>
void launch_chunks(Params<T> p, const Place& place) {
  p.column_blocks = static_cast<int>(ceil_div(p.columns, warp_size * N));
  launch(&activation_gradient_kernel<T, N>, {std::int64_t(p.column_blocks) * p.row_blocks, threads}, place, p);
}

template <class T>
void run_as(const ActivationGradient& work, float* partial, const Place& place) {
  constexpr int size = Pack<T>::size;
  const Params<T> p{.grad_output = Rows<T>(work.grad_output),
                    .preactivation = Rows<T>(work.preactivation),
                    .grad_z = Rows<T>(work.grad_z),
                    .activation = work.activation,
                    .partial = partial,
                    .rows = work.grad_output.size[0],
                    .columns = static_cast<int>(work.grad_output.size[1]),
                    .row_blocks = row_block_count(work.grad_output.size[0])};
  if (is_packed(work.grad_output, size) && is_packed(work.preactivation, size) && is_packed(work.grad_z, size)) {
    launch_chunks<T, size>(p, place);
  } else {
    launch_chunks<T, 1>(p, place);
  }
  if (partial) add_partials(partial, p.row_blocks, work.grad_bias, place);
}

}  // namespace

void run_activation_gradient(const ActivationGradient& work, Workspace& workspace, const Place* place) {
  const std::int64_t rows = work.grad_output.size[0], columns = work.grad_output.size[1];
  float* const partial = work.grad_bias.data ? workspace.take<float>(row_block_count(rows) * columns) : nullptr;
  if (!place) return;
  with_dtype(work.grad_output.dtype, [&]<class T>(T) { run_as<T>(work, partial, *place); });
}

}  // namespace bigmodel::cuda
