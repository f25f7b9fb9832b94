// One kernel per piece of csrc/cuda's vocabulary, for tests/test_cuda_vocabulary.py.
#include "cuda/activation.cuh"
#include "cuda/attention_scores.cuh"
#include "cuda/dropout.cuh"
#include "cuda/launch.cuh"
#include "cuda/online_softmax.cuh"
#include "cuda/plain.cuh"
#include "cuda/tile.cuh"

namespace bigmodel::cuda {
namespace {

constexpr int depth = 96, columns = 64;

enum Lying : int { right_rows, right_depth, left_depth, accumulators };

// c [16, columns] = left [16, depth] right^T, by one warp; right lies as [columns, depth] or as [depth, columns], left
// as [16, depth] or as [depth, 32], of which the first sixteen columns count. accumulators: c [16, depth] is that
// product, as it lies in registers, times right.
template <class T>
__global__ void product_kernel(const T* left, const T* right, int lying, float* c) {
  __shared__ __align__(128) T left_memory[32 * depth], right_memory[columns * depth];
  const SharedTile<T, 16, depth> left_tile(left_memory);
  const SharedTile<T, depth, 32> left_deep(left_memory);
  const SharedTile<T, columns, depth> right_tile(right_memory);
  const SharedTile<T, depth, columns> right_deep(right_memory);
  const bool along_depth = lying == right_rows || lying == accumulators;
  if (lying == left_depth) {
    copy_tile(left_deep, 32, left, [&](int row) { return left + row * 32; });
  } else {
    copy_tile(left_tile, depth, left, [&](int row) { return left + row * depth; });
  }
  if (along_depth) {
    copy_tile(right_tile, depth, right, [&](int row) { return right + row * depth; });
  } else {
    copy_tile(right_deep, columns, right, [&](int row) { return right + row * columns; });
  }
  ptx::commit_copies();
  ptx::wait_for_copies<0>();
  __syncthreads();
  Accumulators<columns> sums;
  sums.clear();
  const auto operand = [&](std::uint32_t (&a)[4], int step) {
    if (lying == left_depth) {
      load_left_transposed(a, left_deep, 0, step_depth<T> * step);
    } else {
      load_left(a, left_tile, 0, step_depth<T> * step);
    }
  };
  if (along_depth) {
    multiply<T, depth>(sums, right_tile, operand);
  } else {
    multiply_transposed<T, depth, DepthOrder::natural>(sums, right_deep, operand);
  }
  const auto store = [&](auto& found) {
    constexpr int width = 8 * std::remove_reference_t<decltype(found)>::blocks;
    found.for_each([&](float x, int half, int column) { c[(lane_id() / 4 + 8 * half) * width + column] = x; });
  };
  if (lying != accumulators) return store(sums);
  Accumulators<depth> again;
  again.clear();
  multiply_transposed<T>(again, sums, right_tile);
  store(again);
}

// Columns from `width` on and rows that are null are zeros.
template <class T>
__global__ void copy_kernel(const T* from, int width, int rows, T* to) {
  __shared__ __align__(128) T memory[16 * depth];
  const SharedTile<T, 16, depth> tile(memory);
  copy_tile(tile, width, from, [&](int row) { return row < rows ? from + row * width : nullptr; });
  ptx::commit_copies();
  ptx::wait_for_copies<0>();
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 16 * depth; i += static_cast<int>(blockDim.x)) {
    const int row = i / depth, column = i % depth;
    to[i] = memory[decltype(tile)::offset(row, column / 8) + column % 8];
  }
}

// The softmax of scores [16, keys] in tiles of `columns`, times values that are all 1: output [16, 8], lse [16].
template <bool Plain>
__global__ void softmax_kernel(const float* scores, int keys, float scale, float* output, float* lse) {
  OnlineSoftmax<Plain> softmax{scale * log2_e};
  Accumulators<8> sums;
  sums.clear();
  for (int first = 0; first < keys; first += columns) {
    Accumulators<columns> s;
    s.for_each([&](float& x, int half, int column) { x = scores[(lane_id() / 4 + 8 * half) * keys + first + column]; });
    softmax.update(s, sums);
    Accumulators<columns>& p = s;
    float total[2] = {};
    p.for_each([&](float& x, int half, int) { total[half] += x; });
    for (int half = 0; half < 2; ++half) total[half] = group_sum<4>(total[half]);
    sums.for_each([&](float& x, int half, int) { x += total[half]; });
  }
  softmax.finish();
  for (int half = 0; half < 2; ++half) {
    const RowEnd end(softmax.maximum[half] * scale, softmax.sum[half], -INFINITY);
    const int row = lane_id() / 4 + 8 * half;
    if (lane_id() % 4 == 0) lse[row] = end.lse;
    sums.for_each([&](float& x, int which, int column) {
      if (which == half) output[row * 8 + column] = x * end.factor;
    });
  }
}

__global__ void activation_kernel(const float* x, int count, int activation, float* value, float* slope) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= count) return;
  with_activation(static_cast<Activation>(activation), [&](auto function) {
    const ValueAndSlope both = function(x[i]);
    value[i] = both.value;
    slope[i] = both.slope;
  });
}

// factors [16, columns] of rows and columns from the given ones on, by one element at a time or as a warp shares them;
// transposed: rows are keys.
__global__ void dropout_kernel(const __grid_constant__ DropoutRule rule, int way, int batch, int head, int first_query,
                               int first_key, float* factors) {
  const HeadDropout dropout(rule, batch);
  Accumulators<columns> f;
  QueryRow rows[2];
  for (int half = 0; half < 2; ++half) {
    rows[half].head = head;
    rows[half].query = first_query + lane_id() / 4 + 8 * half;
  }
  if (way == 0) {
    f.for_each([&](float& x, int half, int column) { x = dropout.factor(head, rows[half].query, first_key + column); });
  } else if (way == 1) {
    for_each_dropout(dropout, rows, first_key, f, [](float& x, float factor) { x = factor; });
  } else {
    for_each_dropout_transposed(dropout, head, first_query, first_key, f, [](float& x, float factor) { x = factor; });
  }
  f.for_each([&](float x, int half, int column) { factors[(lane_id() / 4 + 8 * half) * columns + column] = x; });
}

// Of 256 threads: the sum of the block, of the warp, of four neighbours, and their largest.
__global__ void reduction_kernel(const float* x, float* results) {
  __shared__ float room[8];
  const int i = static_cast<int>(threadIdx.x);
  results[4 * i] = team_sum<256>(x[i], room);
  results[4 * i + 1] = team_sum<32>(x[i], room);
  results[4 * i + 2] = group_sum<4>(x[i]);
  results[4 * i + 3] = group_max<4>(x[i]);
}

// c [64, 64] = left [64, deep] right^T, then c right [64, deep] and c^T left [64, deep].
__global__ void plain_kernel(const float* left, const float* right, int deep, float* c, float* again,
                             float* transposed) {
  __shared__ __align__(16) PlainStage stage;
  __shared__ __align__(16) PlainTile tile;
  PlainAccumulators sums;
  sums.clear();
  const auto of = [&](const float* from) {
    return [from, deep](int row, int k) { return k < deep ? from[row * deep + k] : 0.0f; };
  };
  plain_multiply<true, true>(sums, stage, deep, of(left), of(right));
  sums.for_each([&](float x, int row, int column) { c[row * 64 + column] = x; });
  const auto times = [&](const float* from, float* to) {
    PlainAccumulators more;
    more.clear();
    plain_multiply<false>(more, tile, stage, 64,
                          [&](int column, int k) { return column < deep ? from[k * deep + column] : 0.0f; });
    more.for_each([&](float x, int row, int column) {
      if (column < deep) to[row * deep + column] = x;
    });
  };
  sums.store(tile);
  times(right, again);
  __syncthreads();  // the tile may still be read
  sums.store_transposed(tile);
  times(left, transposed);
}

__global__ void exp2_kernel(const float* x, float* y) { y[threadIdx.x] = ptx::exp2(x[threadIdx.x]); }

}  // namespace
}  // namespace bigmodel::cuda

using namespace bigmodel;
using namespace bigmodel::cuda;

namespace {

const Place here{};
DropoutRule rule_of(double p, const std::int64_t* seed) { return DropoutRule(Dropout{p, 0, seed}); }

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) void

EXPORT run_product(int dtype, const void* left, const void* right, int lying, float* c) {
  const auto run = [&]<class T>(T) {
    launch(&product_kernel<T>, {1, 32}, here, static_cast<const T*>(left), static_cast<const T*>(right), lying, c);
  };
  if (dtype == 0) {
    run(bf16{});
  } else if (dtype == 1) {
    run(half{});
  } else {
    run(tf32{});
  }
}
EXPORT run_copy(const void* from, int width, int rows, void* to) {
  launch(&copy_kernel<half>, {1, 64}, here, static_cast<const half*>(from), width, rows, static_cast<half*>(to));
}
EXPORT run_softmax(int plain, const float* scores, int keys, float scale, float* output, float* lse) {
  if (plain) {
    launch(&softmax_kernel<true>, {1, 32}, here, scores, keys, scale, output, lse);
  } else {
    launch(&softmax_kernel<false>, {1, 32}, here, scores, keys, scale, output, lse);
  }
}
EXPORT run_activation(const float* x, int count, int activation, float* value, float* slope) {
  launch(&activation_kernel, {1, 256}, here, x, count, activation, value, slope);
}
EXPORT run_dropout(double p, const std::int64_t* seed, int way, int batch, int head, int first_query, int first_key,
                   float* factors) {
  launch(&dropout_kernel, {1, 32}, here, rule_of(p, seed), way, batch, head, first_query, first_key, factors);
}
EXPORT run_reduction(const float* x, float* results) { launch(&reduction_kernel, {1, 256}, here, x, results); }
EXPORT run_plain_product(const float* left, const float* right, int deep, float* c, float* again, float* transposed) {
  launch(&plain_kernel, {1, 256}, here, left, right, deep, c, again, transposed);
}
EXPORT run_exp2(const float* x, float* y) { launch(&exp2_kernel, {1, 256}, here, x, y); }
