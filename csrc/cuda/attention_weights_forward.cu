// attention_weights: the probabilities again, from query, key and lse, a 64x64 tile at a time; averaged over the heads
// in registers where that is wanted. Products are exact in fp32: the matrix that is written bounds the time.
#include <cmath>

#include "cuda/attention_scores.cuh"
#include "cuda/launch.cuh"
#include "cuda/plain.cuh"
#include "cuda/plain_scores.cuh"

namespace bigmodel::cuda {
namespace {

template <class T>
struct Params {
  AttentionTensors<T> in;
  const float* lse;
  std::int64_t lse_batch, lse_head, lse_query;
  T* weights;  // contiguous
  bool average;
  int query_tiles, key_tiles;
};

template <class T>
__device__ void add_head(const Params<T>& p, PlainStage& stage, int b, int h, int first_query, int first_key,
                         PlainAccumulators& sums) {
  const AttentionTensors<T>& in = p.in;
  const T *const query = in.query.at(b, h), *const key = in.key.at(b, h / in.group);
  PlainAccumulators products;
  products.clear();
  plain_multiply<true, true>(
      products, stage, in.head_dim,
      [&](int row, int depth) {
        const bool inside = first_query + row < in.q_len && depth < in.head_dim;
        return inside ? to_float(query[(first_query + row) * in.query.row + depth * in.query.column]) : 0.0f;
      },
      [&](int row, int depth) {
        const bool inside = first_key + row < in.kv_len && depth < in.head_dim;
        return inside ? to_float(key[(first_key + row) * in.key.row + depth * in.key.column]) : 0.0f;
      });
  const HeadDropout dropout(in.rules.dropout, b);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int q = first_query + plain_row() + i;
    if (q >= in.q_len) continue;
    const float lse = p.lse[b * p.lse_batch + h * p.lse_head + q * p.lse_query];
    if (lse == -INFINITY) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int k = first_key + plain_column() + j;
      if (k >= in.kv_len) continue;
      const float score = plain_score(in, products.at[i][j], b, h, q, k).score;
      const float factor = in.rules.dropout.seed ? dropout.factor(h, q, k) : 1.0f;
      sums.at[i][j] += ptx::exp2((score - lse) * log2_e) * factor;
    }
  }
}

template <class T>
__global__ __launch_bounds__(plain_threads, 1) void attention_weights_kernel(const __grid_constant__ Params<T> p) {
  __shared__ __align__(16) PlainStage stage;
  const AttentionTensors<T>& in = p.in;
  int block = static_cast<int>(blockIdx.x);
  const int first_key = block % p.key_tiles * plain_tile;
  block /= p.key_tiles;
  const int first_query = block % p.query_tiles * plain_tile, unit = block / p.query_tiles;
  const int heads = p.average ? 1 : in.heads, b = unit / heads, head = unit % heads;
  PlainAccumulators sums;
  sums.clear();
  for (int h = head; h < (p.average ? in.heads : head + 1); ++h) {
    add_head(p, stage, b, h, first_query, first_key, sums);
  }
  const float share = p.average ? 1.0f / static_cast<float>(in.heads) : 1.0f;
  sums.for_each([&](float x, int row, int column) {
    const int q = first_query + row, k = first_key + column;
    if (q >= in.q_len || k >= in.kv_len) return;
    p.weights[(std::int64_t(unit) * in.q_len + q) * in.kv_len + k] = from_float<T>(x * share);
  });
}

}  // namespace

std::int64_t workspace_bytes(const AttentionWeightsForwardArgs&, const Place&) { return 0; }

void run(const AttentionWeightsForwardArgs& args, const Place& place) {
  with_dtype(args.inputs.query.dtype, [&]<class T>(T) {
    Params<T> p{.in = AttentionTensors<T>(args.inputs),
                .lse = static_cast<const float*>(args.lse.data),
                .lse_batch = args.lse.stride[0],
                .lse_head = args.lse.stride[1],
                .lse_query = args.lse.stride[2],
                .weights = static_cast<T*>(args.weights.data),
                .average = args.average_heads};
    p.query_tiles = ceil_div(p.in.q_len, plain_tile);
    p.key_tiles = ceil_div(p.in.kv_len, plain_tile);
    const std::int64_t units = std::int64_t(p.in.batch) * (p.average ? 1 : p.in.heads);
    launch(&attention_weights_kernel<T>, {units * p.query_tiles * p.key_tiles, plain_threads}, place, p);
  });
}

}  // namespace bigmodel::cuda
