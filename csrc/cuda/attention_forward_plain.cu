// attention in fp32, exactly, and for heads of more features than the tensor-core kernels are compiled for. And the
// merge of splits, which those leave.
#include <algorithm>

#include "cuda/attention_forward.cuh"
#include "cuda/attention_scores.cuh"
#include "cuda/launch.cuh"
#include "cuda/online_softmax.cuh"
#include "cuda/plain.cuh"
#include "cuda/plain_scores.cuh"

namespace bigmodel::cuda {
namespace {

template <class T>
struct Params {
  AttentionTensors<T> in;
  View<T> output;
  float* lse;
  int row_tiles, value_parts;  // a block computes one part of the value's features
};

// Exponentials of a thread's four rows, which it shares with the fifteen lanes beside it.
struct PlainSoftmax {
  float maximum[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY}, sum[4] = {};

  // Scores to exp(score - maximum); factor: what sums under the older maximum are multiplied by.
  __device__ void update(PlainAccumulators& s, float (&factor)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float largest = maximum[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) largest = fmaxf(largest, s.at[i][j]);
      largest = group_max<16>(largest);
      const float shift = largest == -INFINITY ? 0.0f : largest;
      factor[i] = ptx::exp2((maximum[i] - shift) * log2_e);
      maximum[i] = largest;
      sum[i] *= factor[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s.at[i][j] = ptx::exp2((s.at[i][j] - shift) * log2_e);
        sum[i] += s.at[i][j];
      }
    }
  }
};

template <class T, int Slices>
__global__ __launch_bounds__(plain_threads, 1) void plain_attention_kernel(const __grid_constant__ Params<T> p) {
  __shared__ __align__(16) PlainStage stage;
  __shared__ __align__(16) PlainTile probabilities;
  AttentionTensors<T> in = p.in;
  int block = static_cast<int>(blockIdx.x);
  const int part = block % p.value_parts;
  block /= p.value_parts;
  const int unit = block / p.row_tiles, h = unit % in.heads, kv_head = h / in.group;
  int b = unit / in.heads;
  const int first_row = in.enter_tile(in.query_starts, block % p.row_tiles, plain_tile, b) * plain_tile;
  if (first_row >= in.q_len) return;
  const int last_row = min(first_row + plain_tile, in.q_len) - 1, first_value = part * Slices * plain_tile;
  const T *const query = in.query.at(b, h), *const key = in.key.at(b, kv_head), *const value = in.value.at(b, kv_head);

  PlainSoftmax softmax;
  PlainAccumulators output[Slices];
#pragma unroll
  for (int slice = 0; slice < Slices; ++slice) output[slice].clear();

  const int end = in.band.end_key(last_row);
  for (int first_key = in.band.first_key(first_row) / plain_tile * plain_tile; first_key < end;
       first_key += plain_tile) {
    PlainAccumulators s;
    s.clear();
    plain_multiply<true, true>(
        s, stage, in.head_dim,
        [&](int row, int depth) {
          const bool inside = first_row + row < in.q_len && depth < in.head_dim;
          return inside ? to_float(query[(first_row + row) * in.query.row + depth * in.query.column]) : 0.0f;
        },
        [&](int row, int depth) {
          const bool inside = first_key + row < in.kv_len && depth < in.head_dim;
          return inside ? to_float(key[(first_key + row) * in.key.row + depth * in.key.column]) : 0.0f;
        });
    s.for_each([&](float& x, int row, int column) {
      const int q = first_row + row, k = first_key + column;
      x = q < in.q_len && k < in.kv_len ? plain_score(in, x, b, h, q, k).score : -INFINITY;
    });
    float factor[4];
    softmax.update(s, factor);
    if (in.rules.dropout.seed) {
      const HeadDropout dropout(in.rules.dropout, b);  // here, so that the rounds' keys take no registers over the loop
      s.for_each([&](float& x, int row, int column) { x *= dropout.factor(h, first_row + row, first_key + column); });
    }
    s.store(probabilities);
#pragma unroll
    for (int slice = 0; slice < Slices; ++slice) {
      output[slice].for_each([&](float& x, int row, int) { x *= factor[row - plain_row()]; });
      plain_multiply<false>(output[slice], probabilities, stage, plain_tile, [&](int column, int depth) {
        const int feature = first_value + slice * plain_tile + column, k = first_key + depth;
        const bool inside = feature < in.value_dim && k < in.kv_len;
        return inside ? to_float(value[k * in.value.row + feature * in.value.column]) : 0.0f;
      });
    }
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = first_row + plain_row() + i;
    const RowEnd row_end(softmax.maximum[i], group_sum<16>(softmax.sum[i]),
                         in.sinks ? in.sinks[h * in.sink_stride] : -INFINITY);
    if (row >= in.q_len) continue;
    if (part == 0 && plain_column() == 0) p.lse[in.row_of(b, h, row)] = row_end.lse;
#pragma unroll
    for (int slice = 0; slice < Slices; ++slice) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int feature = first_value + slice * plain_tile + plain_column() + j;
        if (feature < in.value_dim)
          p.output.at(b, h, in.first_query + row)[feature] = from_float<T>(output[slice].at[i][j] * row_end.factor);
      }
    }
  }
}

template <class T, int Slices>
void run_slices(const AttentionForwardArgs& args, const Place& place) {
  Params<T> p{.in = AttentionTensors<T>(args.inputs),
              .output = View<T>(args.output),
              .lse = static_cast<float*>(args.lse.data)};
  p.row_tiles = static_cast<int>(p.in.query_starts.tiles(p.in.q_len, plain_tile));
  p.value_parts = ceil_div(p.in.value_dim, Slices * plain_tile);
  const std::int64_t blocks = std::int64_t(p.in.batch) * p.in.heads * p.row_tiles * p.value_parts;
  launch(&plain_attention_kernel<T, Slices>, {blocks, plain_threads}, place, p);
}

constexpr int merge_threads = 128;

// A warp takes a row: its weights are those of a softmax over the splits' log-sum-exps and the sink.
template <class T>
__global__ __launch_bounds__(merge_threads) void merge_kernel(const __grid_constant__ Splits splits,
                                                              const __grid_constant__ View<T> output, float* lse,
                                                              const float* sinks, std::int64_t sink_stride, int heads,
                                                              int q_len, int value_dim) {
  const std::int64_t row = std::int64_t(blockIdx.x) * (merge_threads / warp_size) + warp_id();
  if (row >= splits.rows) return;
  const auto h = static_cast<int>(row / q_len % heads), b = static_cast<int>(row / q_len / heads);
  const auto split_lse = [&](int split) { return splits.lse[split * splits.rows + row]; };
  float largest = -INFINITY, sum = 0.0f;
  for (int split = 0; split < splits.count; ++split) largest = fmaxf(largest, split_lse(split));
  const float shift = largest == -INFINITY ? 0.0f : largest;
  for (int split = 0; split < splits.count; ++split) sum += expf(split_lse(split) - shift);
  const RowEnd end(largest, sum, sinks ? sinks[h * sink_stride] : -INFINITY);
  if (lane_id() == 0) lse[row] = end.lse;
  T* const to = output.at(b, h, static_cast<int>(row % q_len));
  for (int column = lane_id(); column < value_dim; column += warp_size) {
    float x = 0.0f;
    for (int split = 0; split < splits.count; ++split) {
      x += expf(split_lse(split) - shift) * splits.output[(split * splits.rows + row) * value_dim + column];
    }
    to[column] = from_float<T>(x * end.factor);
  }
}

}  // namespace

Splits Splits::in(Workspace& workspace, int count, const AttentionForwardArgs& args) {
  if (count == 1) return {};
  Splits splits;
  splits.count = count;
  splits.rows = args.output.size[0] * args.output.size[1] * args.output.size[2];
  splits.output = workspace.take<float>(count * splits.rows * args.output.size[3]);
  splits.lse = workspace.take<float>(count * splits.rows);
  return splits;
}

void merge_splits(const AttentionForwardArgs& args, const Splits& splits, const Place& place) {
  const TensorView& output = args.output;
  with_dtype(output.dtype, [&]<class T>(T) {
    constexpr int rows = merge_threads / warp_size;
    launch(&merge_kernel<T>, {ceil_div(splits.rows, rows), merge_threads}, place, splits, View<T>(output),
           static_cast<float*>(args.lse.data), static_cast<const float*>(args.inputs.sinks.data),
           args.inputs.sinks.stride[0], static_cast<int>(output.size[1]), static_cast<int>(output.size[2]),
           static_cast<int>(output.size[3]));
  });
}

void run_plain(const AttentionForwardArgs& args, const Place& place) {
  const std::int64_t value_dim = args.inputs.value.size[3];
  if (args.inputs.query.dtype != DType::float32) {
    return with_half_dtype(args.inputs.query.dtype, [&]<class T>(T) { run_slices<T, 4>(args, place); });
  }
  if (value_dim <= 2 * plain_tile) return run_slices<float, 2>(args, place);
  run_slices<float, 4>(args, place);
}

}  // namespace bigmodel::cuda
