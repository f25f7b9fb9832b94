// add_norm: sum = input + residual, its statistics and its normalisation, in one pass over the row.
#include "bigmodel/add_norm.h"
#include "cuda/launch.cuh"
#include "cuda/norm.cuh"
#include "cuda/rows.cuh"

namespace bigmodel::cuda {
namespace {

template <class T>
struct Params {
  Rows<T> input, residual, sum, normed;
  Vector<T> weight, bias;
  float *mean, *rstd;
  std::int64_t rows;
  int width;
  bool layer;
  float eps;
};

// A chunk of the sum, rounded as it is stored: that is what the statistics are of.
template <int N, class T>
__device__ void load_sum(const Params<T>& p, std::int64_t row, int column, float (&x)[N]) {
  load(p.input, row, column, x);
  if (!p.residual.data) return;
  float other[N];
  load(p.residual, row, column, other);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = to_float(from_float<T>(x[i] + other[i]));
}

template <int N>
__device__ float chunk_sum(const float (&x)[N]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += x[i];
  return sum;
}

template <int N>
__device__ float chunk_squares(const float (&x)[N], float mean) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += (x[i] - mean) * (x[i] - mean);
  return sum;
}

template <int N, class T>
__device__ void store_normed(const Params<T>& p, std::int64_t row, int column, const float (&x)[N], float mean,
                             float rstd) {
  float normed[N], parameter[N];
#pragma unroll
  for (int i = 0; i < N; ++i) normed[i] = (x[i] - mean) * rstd;
  if (p.weight.present()) {
    load(p.weight, column, parameter);
#pragma unroll
    for (int i = 0; i < N; ++i) normed[i] *= parameter[i];
  }
  if (p.bias.present()) {
    load(p.bias, column, parameter);
#pragma unroll
    for (int i = 0; i < N; ++i) normed[i] += parameter[i];
  }
  store(p.normed, row, column, normed);
}

template <class T, int Threads, int N>
__global__ __launch_bounds__(norm_threads) void add_norm_kernel(const __grid_constant__ Params<T> p) {
  using Rows = Team<Threads, N>;
  __shared__ float room[norm_threads / warp_size];
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * Rows::per_block + Rows::index();
  if (row >= p.rows) return;  // a whole team, and a team of several warps is the whole block

  float kept[norm_chunks][N], total = 0.0f;
  const auto take = [&](float (&x)[N], int column) {
    load_sum(p, row, column, x);
    if (p.sum.data) store(p.sum, row, column, x);
    total += chunk_sum(x);
  };
  Rows::for_each_kept(p.width, [&](int chunk, int column) { take(kept[chunk], column); });
  Rows::for_each_beyond(p.width, [&](int column) {
    float x[N];
    take(x, column);
  });
  const float columns = static_cast<float>(p.width);
  const float mean = p.layer ? team_sum<Threads>(total, room) / columns : 0.0f;

  float squares = 0.0f;
  Rows::for_each_kept(p.width, [&](int chunk, int) { squares += chunk_squares(kept[chunk], mean); });
  Rows::for_each_beyond(p.width, [&](int column) {
    float x[N];
    load_sum(p, row, column, x);
    squares += chunk_squares(x, mean);
  });
  const float rstd = 1.0f / sqrtf(team_sum<Threads>(squares, room) / columns + p.eps);

  Rows::for_each_kept(p.width, [&](int chunk, int column) { store_normed(p, row, column, kept[chunk], mean, rstd); });
  Rows::for_each_beyond(p.width, [&](int column) {
    float x[N];
    load_sum(p, row, column, x);
    store_normed(p, row, column, x, mean, rstd);
  });
  if (Rows::thread() == 0) {
    if (p.layer) p.mean[row] = mean;
    p.rstd[row] = rstd;
  }
}

template <class T>
bool all_packed(const AddNormForwardArgs& args) {
  constexpr int size = Pack<T>::size;
  return is_packed(args.input, size) && is_packed(args.residual, size) && is_packed(args.sum, size) &&
         is_packed(args.normed, size) && is_packed(as_row(args.weight), size) && is_packed(as_row(args.bias), size);
}

}  // namespace

std::int64_t workspace_bytes(const AddNormForwardArgs&, const Place&) { return 0; }

void run(const AddNormForwardArgs& args, const Place& place) {
  with_dtype(args.input.dtype, [&]<class T>(T) {
    const Params<T> p{.input = Rows<T>(args.input),
                      .residual = Rows<T>(args.residual),
                      .sum = Rows<T>(args.sum),
                      .normed = Rows<T>(args.normed),
                      .weight = Vector<T>(args.weight),
                      .bias = Vector<T>(args.bias),
                      .mean = static_cast<float*>(args.mean.data),
                      .rstd = static_cast<float*>(args.rstd.data),
                      .rows = args.input.size[0],
                      .width = static_cast<int>(args.input.size[1]),
                      .layer = args.kind == NormKind::layer,
                      .eps = args.eps};
    with_team<T>(p.width, all_packed<T>(args), [&]<int threads, int n>(Team<threads, n>) {
      constexpr int per_block = Team<threads, n>::per_block;
      launch(&add_norm_kernel<T, threads, n>, {ceil_div(p.rows, per_block), norm_threads}, place, p);
    });
  });
}

}  // namespace bigmodel::cuda
