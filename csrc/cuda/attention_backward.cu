// attention_backward: the terms of each query, the sinks' gradient, and the choice of kernels.
#include <cmath>

#include "cuda/attention_gradient.cuh"
#include "cuda/launch.cuh"
#include "cuda/rows.cuh"
#include "cuda/tile.cuh"
#include "cuda/warp.cuh"

namespace bigmodel::cuda {
namespace {

constexpr int term_threads = 128, term_lanes = 8;

template <class T>
struct TermParams {
  View<const T> output, grad_output;
  const float *lse, *grad_lse;
  std::int64_t lse_stride[3], grad_lse_stride[3];
  RowTermsView terms;
  Starts query_starts;
  int heads, q_len, value_dim;
  std::int64_t rows;  // of terms, in all heads
};

__device__ float at(const float* data, const std::int64_t (&stride)[3], int b, int h, int q) {
  return data[b * stride[0] + h * stride[1] + q * stride[2]];
}

// The sum over one row of output * grad_output that falls to a lane, which takes N neighbours at a time.
template <int N, class T>
__device__ float lane_delta(const TermParams<T>& p, int b, int h, int q) {
  Rows<const T> output, grad;
  output.data = p.output.at(b, h, q), output.stride = p.output.column;
  grad.data = p.grad_output.at(b, h, q), grad.stride = p.grad_output.column;
  float delta = 0.0f;
  for (int column = N * (lane_id() % term_lanes); column < p.value_dim; column += N * term_lanes) {
    float x[N], y[N];
    load(output, 0, column, x);
    load(grad, 0, column, y);
#pragma unroll
    for (int i = 0; i < N; ++i) delta += x[i] * y[i];
  }
  return delta;
}

// term_lanes lanes take a query, and a block some of one tile.
template <class T, int N>
__global__ __launch_bounds__(term_threads) void row_terms_kernel(const __grid_constant__ TermParams<T> p) {
  const std::int64_t first = std::int64_t(blockIdx.x) * (term_threads / term_lanes);
  const std::int64_t row = first + static_cast<int>(threadIdx.x) / term_lanes;
  const std::int64_t known = row < p.rows ? row : p.rows - 1;  // lanes past the end take part in the sums
  const auto h = static_cast<int>(known / p.terms.length % p.heads),
             b = static_cast<int>(known / p.terms.length / p.heads);
  auto q = static_cast<int>(known % p.terms.length);
  bool seen = q < p.q_len;
  if (p.query_starts.data) {
    const SequenceTile tile = p.query_starts.find(static_cast<int>(first % p.terms.length / term_tile), term_tile, 1);
    const int query = tile.number * term_tile + q % term_tile;
    seen = query < p.query_starts.length(tile.sequence);
    q = p.query_starts[tile.sequence] + query;
  }
  const float delta = group_sum<term_lanes>(seen && p.grad_output.data ? lane_delta<N>(p, b, h, q) : 0.0f);
  if (row >= p.rows || lane_id() % term_lanes != 0) return;
  RowTerms terms{INFINITY, 0.0f};
  if (seen) {
    terms.delta = delta - (p.grad_lse ? at(p.grad_lse, p.grad_lse_stride, b, h, q) : 0.0f);
    const float lse = at(p.lse, p.lse_stride, b, h, q);
    if (lse != -INFINITY) terms.lse = lse;
  }
  p.terms.data[row] = terms;
}

constexpr int sink_threads = 256;

// d lse / d sink = exp(sink - lse) in every row, and the output shrinks by as much: -exp(sink - lse) delta, summed.
__global__ __launch_bounds__(sink_threads) void sink_gradient_kernel(const float* sinks, std::int64_t sink_stride,
                                                                     const __grid_constant__ RowTermsView terms,
                                                                     int batch, float* grad_sinks) {
  __shared__ float room[sink_threads / warp_size];
  const int h = static_cast<int>(blockIdx.x);
  const float sink = sinks[h * sink_stride];
  float sum = 0.0f;
  for (int b = 0; b < batch; ++b) {
    const RowTerms* const row = terms.data + (std::int64_t(b) * terms.heads + h) * terms.length;
    for (std::int64_t q = threadIdx.x; q < terms.length; q += sink_threads) {
      sum -= expf(sink - row[q].lse) * row[q].delta;
    }
  }
  sum = team_sum<sink_threads>(sum, room);
  if (threadIdx.x == 0) grad_sinks[h] = sum;
}

template <class T>
void launch_terms(const AttentionBackwardArgs& args, const RowTermsView& terms, const Place& place) {
  TermParams<T> p{.output = View<const T>(args.output),
                  .grad_output = View<const T>(args.grad_output),
                  .lse = static_cast<const float*>(args.lse.data),
                  .grad_lse = static_cast<const float*>(args.grad_lse.data),
                  .terms = terms,
                  .query_starts = Starts(args.inputs.query_starts, args.inputs.query.size[2]),
                  .heads = static_cast<int>(args.inputs.query.size[1]),
                  .q_len = static_cast<int>(args.inputs.query.size[2]),
                  .value_dim = static_cast<int>(args.inputs.value.size[3]),
                  .rows = args.inputs.query.size[0] * terms.heads * terms.length};
  for (int dim = 0; dim < 3; ++dim) {
    p.lse_stride[dim] = args.lse.stride[dim];
    p.grad_lse_stride[dim] = args.grad_lse.stride[dim];
  }
  constexpr int rows = term_threads / term_lanes;
  const Launch shape{ceil_div(p.rows, rows), term_threads};
  if (has_packed_rows(args.output) && has_packed_rows(args.grad_output)) {
    launch(&row_terms_kernel<T, chunk_elements<T>>, shape, place, p);
  } else {
    launch(&row_terms_kernel<T, 1>, shape, place, p);
  }
}

// All gradients but the mask's and the sinks', on tensor cores.
template <class T>
void run_tiles(const AttentionBackwardArgs& args, const RowTermsView& terms, Workspace& workspace, const Place* place) {
  const AttentionInputs inputs = packed_inputs(args.inputs, workspace, place);
  const TensorView grad_output = packed_rows(args.grad_output, workspace, place);
  if (!place) return;
  check_products<T>(*place);
  const GradientParams<T> p{.in = AttentionTensors<T>(inputs),
                            .grad_output = View<const T>(grad_output),
                            .terms = terms,
                            .grad_query = View<T>(args.grad_query),
                            .grad_key = View<T>(args.grad_key),
                            .grad_value = View<T>(args.grad_value),
                            .packed_query = has_packed_rows(args.grad_query),
                            .packed_key = has_packed_rows(args.grad_key),
                            .packed_value = has_packed_rows(args.grad_value),
                            .head_dim = static_cast<int>(args.inputs.query.size[3]),
                            .value_dim = static_cast<int>(args.inputs.value.size[3])};
  if (args.grad_query.data) run_grad_query(p, *place);
  if (args.grad_key.data || args.grad_value.data) run_grad_key(p, *place);
}

void run_all(const AttentionBackwardArgs& args, bool on_tensor_cores, Workspace& workspace, const Place* place) {
  const RowTermsView terms = row_terms(args, workspace, place);
  const PlainBackward plain{.inputs = args.inputs, .grad_output = args.grad_output, .terms = terms};
  if (on_tensor_cores) {
    with_tile_type(args.inputs.query.dtype, [&]<class T>(T) { run_tiles<T>(args, terms, workspace, place); });
  } else if (place) {
    if (args.grad_query.data) run_plain(plain, PlainGradient::query, args.grad_query, *place);
    if (args.grad_key.data) run_plain(plain, PlainGradient::key, args.grad_key, *place);
    if (args.grad_value.data) run_plain(plain, PlainGradient::value, args.grad_value, *place);
  }
  if (args.grad_mask.data && place) run_plain(plain, PlainGradient::mask, args.grad_mask, *place);
}

}  // namespace

RowTermsView row_terms(const AttentionBackwardArgs& args, Workspace& workspace, const Place* place) {
  const TensorView& query = args.inputs.query;
  RowTermsView terms;
  terms.heads = query.size[1];
  terms.length = Starts(args.inputs.query_starts, query.size[2]).tiles(query.size[2], term_tile) * term_tile;
  terms.data = workspace.take<RowTerms>(query.size[0] * terms.heads * terms.length);
  if (!place) return terms;
  with_dtype(query.dtype, [&]<class T>(T) { launch_terms<T>(args, terms, *place); });
  if (args.grad_sinks.data) {
    launch(&sink_gradient_kernel, {terms.heads, sink_threads}, *place,
           static_cast<const float*>(args.inputs.sinks.data), args.inputs.sinks.stride[0], terms,
           static_cast<int>(query.size[0]), static_cast<float*>(args.grad_sinks.data));
  }
  return terms;
}

std::int64_t workspace_bytes(const AttentionBackwardArgs& args, const Place& place) {
  Workspace workspace;
  run_all(args, uses_tiles(args.inputs, place), workspace, nullptr);
  return workspace.used();
}

void run(const AttentionBackwardArgs& args, const Place& place) {
  Workspace workspace(args.workspace);
  run_all(args, uses_tiles(args.inputs, place), workspace, &place);
}

}  // namespace bigmodel::cuda
