// add_norm's gradients in one pass: teams walk over rows, and keep the sums for weight and bias in registers. With
// x = (sum - mean) rstd and g = grad_normed weight,
//   grad_input = rstd (g - mean(g) - x mean(g x)) + grad_sum        (rms: without mean(g))
//   grad_weight = sum over rows of grad_normed x,  grad_bias = sum over rows of grad_normed.
// Blocks leave partial sums, which a second kernel adds up in a fixed order.
#include <algorithm>

#include "bigmodel/add_norm.h"
#include "cuda/launch.cuh"
#include "cuda/norm.cuh"
#include "cuda/partial_sums.cuh"
#include "cuda/rows.cuh"

namespace bigmodel::cuda {
namespace {

template <class T>
struct Params {
  Rows<T> grad_normed, grad_sum, sum, grad_input;
  Vector<T> weight;
  const float *mean, *rstd;              // mean is absent for rms
  float *partial_weight, *partial_bias;  // [blocks, width]; absent: no sums
  std::int64_t rows;
  int width;
};

// Of one row: what its chunks need.
struct RowTerms {
  float mean, rstd;
};

template <class T>
__device__ RowTerms row_terms(const Params<T>& p, std::int64_t row) {
  return {p.mean ? p.mean[row] : 0.0f, p.rstd[row]};
}

// x and, in place of grad_normed, g.
template <int N>
struct Chunk {
  float x[N], g[N];
};

template <int N, class T>
__device__ void load_chunk(const Params<T>& p, const RowTerms& terms, std::int64_t row, int column, Chunk<N>& chunk) {
  load(p.sum, row, column, chunk.x);
  load(p.grad_normed, row, column, chunk.g);
#pragma unroll
  for (int i = 0; i < N; ++i) chunk.x[i] = (chunk.x[i] - terms.mean) * terms.rstd;
}

template <int N, class T>
__device__ void weigh(const Params<T>& p, int column, Chunk<N>& chunk) {
  if (!p.weight.present()) return;
  float weight[N];
  load(p.weight, column, weight);
#pragma unroll
  for (int i = 0; i < N; ++i) chunk.g[i] *= weight[i];
}

template <int N, class T>
__device__ void store_gradient(const Params<T>& p, const RowTerms& terms, std::int64_t row, int column,
                               const Chunk<N>& chunk, float mean_g, float mean_gx) {
  float grad[N], other[N] = {};
  if (p.grad_sum.data) load(p.grad_sum, row, column, other);
#pragma unroll
  for (int i = 0; i < N; ++i) grad[i] = terms.rstd * (chunk.g[i] - mean_g - chunk.x[i] * mean_gx) + other[i];
  store(p.grad_input, row, column, grad);
}

// Adds up what the teams of a block keep of some columns, and stores it as the block's partial sum.
template <class Rows, int N>
__device__ void store_partial(const float (&sums)[norm_chunks][N], int width, float* partial) {
  __shared__ float room[Rows::per_block][Rows::kept_columns];
  __syncthreads();  // room may still be read from the call before
  Rows::for_each_kept(width, [&](int chunk, int column) {
#pragma unroll
    for (int i = 0; i < N; ++i) room[Rows::index()][column + i] = sums[chunk][i];
  });
  __syncthreads();
  for (int column = threadIdx.x; column < width; column += norm_threads) {
    float sum = 0.0f;
#pragma unroll
    for (int team = 0; team < Rows::per_block; ++team) sum += room[team][column];
    partial[static_cast<std::int64_t>(blockIdx.x) * width + column] = sum;
  }
}

template <class T, int Threads, int N>
__global__ __launch_bounds__(norm_threads) void add_norm_backward_kernel(const __grid_constant__ Params<T> p) {
  using Rows = Team<Threads, N>;
  __shared__ float room[norm_threads / warp_size];
  float weight_sums[norm_chunks][N] = {}, bias_sums[norm_chunks][N] = {};
  const float columns = static_cast<float>(p.width);

  const std::int64_t teams = static_cast<std::int64_t>(gridDim.x) * Rows::per_block;
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * Rows::per_block + Rows::index(); row < p.rows;
       row += teams) {
    const RowTerms terms = row_terms(p, row);
    Chunk<N> kept[norm_chunks];
    float sum_g = 0.0f, sum_gx = 0.0f;
    const auto add = [&](const Chunk<N>& chunk) {
#pragma unroll
      for (int i = 0; i < N; ++i) sum_g += chunk.g[i], sum_gx += chunk.g[i] * chunk.x[i];
    };
    Rows::for_each_kept(p.width, [&](int number, int column) {
      Chunk<N>& chunk = kept[number];
      load_chunk(p, terms, row, column, chunk);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        weight_sums[number][i] += chunk.g[i] * chunk.x[i];
        bias_sums[number][i] += chunk.g[i];
      }
      weigh(p, column, chunk);
      add(chunk);
    });
    Rows::for_each_beyond(p.width, [&](int column) {
      Chunk<N> chunk;
      load_chunk(p, terms, row, column, chunk);
      weigh(p, column, chunk);
      add(chunk);
    });
    if (!p.grad_input.data) continue;  // the same for all rows

    const float mean_g = p.mean ? team_sum<Threads>(sum_g, room) / columns : 0.0f;
    const float mean_gx = team_sum<Threads>(sum_gx, room) / columns;
    Rows::for_each_kept(
        p.width, [&](int number, int column) { store_gradient(p, terms, row, column, kept[number], mean_g, mean_gx); });
    Rows::for_each_beyond(p.width, [&](int column) {
      Chunk<N> chunk;
      load_chunk(p, terms, row, column, chunk);
      weigh(p, column, chunk);
      store_gradient(p, terms, row, column, chunk, mean_g, mean_gx);
    });
  }
  if (p.partial_weight) store_partial<Rows, N>(weight_sums, p.width, p.partial_weight);
  if (p.partial_bias) store_partial<Rows, N>(bias_sums, p.width, p.partial_bias);
}

// Rows too wide for registers: a thread takes one column of a block's rows, and reads them once more.
constexpr int column_threads = 256;

template <class T>
__global__ __launch_bounds__(column_threads) void column_sums_kernel(const __grid_constant__ Params<T> p, int blocks) {
  const std::int64_t block = blockIdx.x % blocks;
  const int column = static_cast<int>(blockIdx.x) / blocks * column_threads + static_cast<int>(threadIdx.x);
  if (column >= p.width) return;
  float weight_sum = 0.0f, bias_sum = 0.0f;
  for (std::int64_t row = block; row < p.rows; row += blocks) {
    Chunk<1> chunk;
    load_chunk(p, row_terms(p, row), row, column, chunk);
    weight_sum += chunk.g[0] * chunk.x[0];
    bias_sum += chunk.g[0];
  }
  if (p.partial_weight) p.partial_weight[block * p.width + column] = weight_sum;
  if (p.partial_bias) p.partial_bias[block * p.width + column] = bias_sum;
}

// Enough blocks to fill the device, and few enough that adding their sums up costs little.
int block_count(std::int64_t rows, const Place& place) {
  return static_cast<int>(std::min<std::int64_t>(rows, 2 * place.multiprocessors));
}

template <class T>
bool all_packed(const AddNormBackwardArgs& args) {
  constexpr int size = Pack<T>::size;
  return is_packed(args.grad_normed, size) && is_packed(args.grad_sum, size) && is_packed(args.sum, size) &&
         is_packed(args.grad_input, size) && is_packed(as_row(args.weight), size);
}

template <class T>
void run_as(const AddNormBackwardArgs& args, const Place& place) {
  const int width = static_cast<int>(args.sum.size[1]), blocks = block_count(args.sum.size[0], place);
  float* const partial_weight = static_cast<float*>(args.workspace);
  float* const partial_bias = partial_weight + (args.grad_weight.data ? std::int64_t(blocks) * width : 0);
  Params<T> p{.grad_normed = Rows<T>(args.grad_normed),
              .grad_sum = Rows<T>(args.grad_sum),
              .sum = Rows<T>(args.sum),
              .grad_input = Rows<T>(args.grad_input),
              .weight = Vector<T>(args.weight),
              .mean = static_cast<const float*>(args.mean.data),
              .rstd = static_cast<const float*>(args.rstd.data),
              .partial_weight = args.grad_weight.data ? partial_weight : nullptr,
              .partial_bias = args.grad_bias.data ? partial_bias : nullptr,
              .rows = args.sum.size[0],
              .width = width};
  with_team<T>(width, all_packed<T>(args), [&]<int threads, int n>(Team<threads, n>) {
    const bool sums = p.partial_weight || p.partial_bias, too_wide = width > Team<threads, n>::kept_columns;
    Params<T> row_params = p;
    if (too_wide) row_params.partial_weight = row_params.partial_bias = nullptr;
    if (p.grad_input.data || (sums && !too_wide)) {
      launch(&add_norm_backward_kernel<T, threads, n>, {blocks, norm_threads}, place, row_params);
    }
    if (sums && too_wide) {
      launch(&column_sums_kernel<T>, {blocks * ceil_div(width, column_threads), column_threads}, place, p, blocks);
    }
  });
  if (args.grad_weight.data) add_partials(partial_weight, blocks, args.grad_weight, place);
  if (args.grad_bias.data) add_partials(partial_bias, blocks, args.grad_bias, place);
}

}  // namespace

std::int64_t workspace_bytes(const AddNormBackwardArgs& args, const Place& place) {
  const int sums = (args.grad_weight.data != nullptr) + (args.grad_bias.data != nullptr);
  return std::int64_t(sums) * block_count(args.sum.size[0], place) * args.sum.size[1] * std::int64_t(sizeof(float));
}

void run(const AddNormBackwardArgs& args, const Place& place) {
  with_dtype(args.sum.dtype, [&]<class T>(T) { run_as<T>(args, place); });
}

}  // namespace bigmodel::cuda
