// Gradients of attention and attention_weights without tensor cores; attention_backward.cuh says which.
#include <cmath>

#include "cuda/attention_backward.cuh"
#include "cuda/attention_scores.cuh"
#include "cuda/launch.cuh"
#include "cuda/plain.cuh"
#include "cuda/plain_scores.cuh"

namespace bigmodel::cuda {
namespace {

template <class T>
struct Params {
  AttentionTensors<T> in;
  View<const T> grad_output, grad_weights;
  float grad_weights_scale;
  RowTermsView terms;
  PlainGradient which;
  View<T> gradient;  // of query, key or value
  int features, feature_parts, row_tiles;
  float* grad_lse;  // contiguous
  // The mask's: contiguous, with size 1 where it broadcasts.
  void* grad_mask;
  bool mask_is_wide;
  int mask_batch, mask_size[4], mask_tiles[2];  // mask_batch: whatever it broadcasts over
};

struct Scratch {
  PlainStage stage;
  PlainTile tile;
};

// A 64x64 tile, queries by keys: P F in `probabilities`, and dS in `gradients` if it is wanted. `in`: p's own, or that
// of a packed sequence.
template <class T>
__device__ void tile_gradients(const Params<T>& p, const AttentionTensors<T>& in, PlainStage& stage, int b, int h,
                               int first_query, int first_key, bool gradients_wanted, PlainAccumulators& probabilities,
                               PlainAccumulators& gradients) {
  const auto rows_of = [](const View<const T>& view, int batch, int head, int first, int count, int width) {
    const T* const data = view.data ? view.at(batch, head) : nullptr;
    return [=, row_stride = view.row, stride = view.column](int row, int depth) {
      const bool inside = data && first + row < count && depth < width;
      return inside ? to_float(data[(first + row) * row_stride + depth * stride]) : 0.0f;
    };
  };
  const int kv_head = h / in.group;
  probabilities.clear();
  plain_multiply<true, true>(probabilities, stage, in.head_dim,
                             rows_of(in.query, b, h, first_query, in.q_len, in.head_dim),
                             rows_of(in.key, b, kv_head, first_key, in.kv_len, in.head_dim));
  gradients.clear();
  if (p.grad_weights.data) {
    const T* const grad = p.grad_weights.at(b, h);
    gradients.for_each([&](float& x, int row, int column) {
      const std::int64_t query = first_query + row, key = first_key + column;
      if (query >= in.q_len || key >= in.kv_len) return;
      x = to_float(grad[query * p.grad_weights.row + key * p.grad_weights.column]) * p.grad_weights_scale;
    });
  } else if (gradients_wanted) {
    plain_multiply<true, true>(
        gradients, stage, in.value_dim,
        rows_of(p.grad_output.from_row(in.first_query), b, h, first_query, in.q_len, in.value_dim),
        rows_of(in.value, b, kv_head, first_key, in.kv_len, in.value_dim));
  }
  const HeadDropout dropout(in.rules.dropout, b);
  const RowTerms* const terms = p.terms.at(in, b, h);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int query = first_query + plain_row() + i;
    const RowTerms row = query < in.q_len ? terms[query] : RowTerms{INFINITY, 0.0f};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = first_key + plain_column() + j;
      float &x = probabilities.at[i][j], &g = gradients.at[i][j];
      PlainScore score{-INFINITY, 0.0f};
      if (query < in.q_len && key < in.kv_len) score = plain_score(in, x, b, h, query, key);
      x = ptx::exp2((score.score - row.lse) * log2_e);
      const float factor = in.rules.dropout.seed ? dropout.factor(h, query, key) : 1.0f;
      g = x * (g * factor - row.delta);
      // The mask is added, and the lse subtracted, behind the softcap.
      if (p.which != PlainGradient::mask && p.which != PlainGradient::lse) g *= score.slope;
      x *= factor;
    }
  }
}

// A block sums one tile of 64 rows of dQ, dK or dV, and Slices times 64 of its features.
template <class T, int Slices>
__global__ __launch_bounds__(plain_threads, 1) void plain_gradient_kernel(const __grid_constant__ Params<T> p) {
  __shared__ __align__(16) Scratch scratch;
  AttentionTensors<T> in = p.in;
  const bool of_query = p.which == PlainGradient::query, of_value = p.which == PlainGradient::value;
  int block = static_cast<int>(blockIdx.x);
  const int first_feature = block % p.feature_parts * Slices * plain_tile;
  block /= p.feature_parts;
  const int units = of_query ? in.heads : in.kv_heads, unit = block / p.row_tiles, own_head = unit % units;
  int b = unit / units;
  // Of p: a choice between addresses within `in` would keep all of that in local memory.
  const Starts& starts = of_query ? p.in.query_starts : p.in.key_starts;
  const int first_row = in.enter_tile(starts, block % p.row_tiles, plain_tile, b) * plain_tile;
  const int length = of_query ? in.q_len : in.kv_len, last_row = min(first_row + plain_tile, length) - 1;
  if (first_row >= length) return;
  // What passes by: keys of one head, or queries of all heads that read these keys.
  const int passing_length = of_query ? in.kv_len : in.q_len;
  const int first = of_query ? in.band.first_key(first_row) : max(in.band.first_query(first_row), 0);
  const int end = of_query ? in.band.end_key(last_row) : min(in.band.end_query(last_row), in.q_len);
  const View<const T> passing = of_query ? in.key : of_value ? p.grad_output.from_row(in.first_query) : in.query;

  PlainAccumulators sums[Slices];
#pragma unroll
  for (int slice = 0; slice < Slices; ++slice) sums[slice].clear();
  for (int member = 0; member < (of_query ? 1 : in.group); ++member) {
    const int h = of_query ? own_head : own_head * in.group + member;
    const T* const rows = passing.data ? passing.at(b, of_query ? own_head / in.group : h) : nullptr;
    for (int other = first / plain_tile * plain_tile; other < end; other += plain_tile) {
      PlainAccumulators probabilities, gradients;
      tile_gradients(p, in, scratch.stage, b, h, of_query ? first_row : other, of_query ? other : first_row, !of_value,
                     probabilities, gradients);
      if (of_query) {
        gradients.store(scratch.tile);
      } else if (of_value) {  // one store of whichever it is would need the addresses of registers
        probabilities.store_transposed(scratch.tile);
      } else {
        gradients.store_transposed(scratch.tile);
      }
#pragma unroll
      for (int slice = 0; slice < Slices; ++slice) {
        plain_multiply<false>(sums[slice], scratch.tile, scratch.stage, plain_tile, [&](int column, int depth) {
          const int feature = first_feature + slice * plain_tile + column, row = other + depth;
          const bool inside = rows && feature < p.features && row < passing_length;
          return inside ? to_float(rows[row * passing.row + feature * passing.column]) : 0.0f;
        });
      }
    }
  }
  const float scale = of_value ? 1.0f : in.rules.scale;
#pragma unroll
  for (int slice = 0; slice < Slices; ++slice) {
    sums[slice].for_each([&](float x, int row, int column) {
      const int feature = first_feature + slice * plain_tile + column;
      if (first_row + row >= length || feature >= p.features) return;
      const int token = (of_query ? in.first_query : in.first_key) + first_row + row;
      p.gradient.at(b, own_head, token)[feature] = from_float<T>(x * scale);
    });
  }
}

// A block sums one tile of the mask's gradient over the dimensions in which the mask broadcasts. It is 0 behind the
// last query and key of a packed sequence.
template <class T>
__global__ __launch_bounds__(plain_threads, 1) void mask_gradient_kernel(const __grid_constant__ Params<T> p) {
  __shared__ __align__(16) Scratch scratch;
  int block = static_cast<int>(blockIdx.x);
  const int first_key = block % p.mask_tiles[1] * plain_tile;
  block /= p.mask_tiles[1];
  const int first_query = block % p.mask_tiles[0] * plain_tile;
  block /= p.mask_tiles[0];
  const int mask_h = block % p.mask_size[1], mask_b = block / p.mask_size[1];
  const bool one_b = p.mask_size[0] == 1, one_h = p.mask_size[1] == 1, one_q = p.mask_size[2] == 1,
             one_k = p.mask_size[3] == 1;

  PlainAccumulators sums;
  sums.clear();
  for (int b = one_b ? 0 : mask_b; b < (one_b ? p.mask_batch : mask_b + 1); ++b) {
    AttentionTensors<T> in = p.in;
    in.choose_sequence(b);
    if (first_query >= in.q_len || first_key >= in.kv_len) continue;
    for (int h = one_h ? 0 : mask_h; h < (one_h ? in.heads : mask_h + 1); ++h) {
      for (int query = first_query; query < (one_q ? in.q_len : first_query + 1); query += plain_tile) {
        for (int key = first_key; key < (one_k ? in.kv_len : first_key + 1); key += plain_tile) {
          PlainAccumulators probabilities, gradients;
          tile_gradients(p, in, scratch.stage, b, h, query, key, true, probabilities, gradients);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) sums.at[i][j] += gradients.at[i][j];
          }
        }
      }
    }
  }
  sums.store_transposed(scratch.tile);  // [query][key]
  __syncthreads();
  const int queries = min(plain_tile, p.mask_size[2] - first_query), keys = min(plain_tile, p.mask_size[3] - first_key);
  for (int i = static_cast<int>(threadIdx.x); i < queries * plain_tile; i += plain_threads) {
    const int query = i / plain_tile, key = i % plain_tile;
    if (key >= keys) continue;
    float sum = 0.0f;
    for (int k = key; k < (one_k ? plain_tile : key + 1); ++k) {
      for (int q = query; q < (one_q ? plain_tile : query + 1); ++q) sum += scratch.tile.at(q, k);
    }
    const std::int64_t row = (std::int64_t(mask_b) * p.mask_size[1] + mask_h) * p.mask_size[2] + first_query + query;
    const std::int64_t at = row * p.mask_size[3] + first_key + key;
    if (p.mask_is_wide) {
      static_cast<float*>(p.grad_mask)[at] = sum;
    } else {
      static_cast<T*>(p.grad_mask)[at] = from_float<T>(sum);
    }
  }
}

// attention_weights: d weights / d lse is minus the weights, so each query's gradient is minus the sum of its dS.
template <class T>
__global__ __launch_bounds__(plain_threads, 1) void lse_gradient_kernel(const __grid_constant__ Params<T> p) {
  __shared__ __align__(16) PlainStage stage;
  const AttentionTensors<T>& in = p.in;
  const int first_query = static_cast<int>(blockIdx.x) % p.row_tiles * plain_tile;
  const int unit = static_cast<int>(blockIdx.x) / p.row_tiles, b = unit / in.heads, h = unit % in.heads;
  const int end = in.band.end_key(min(first_query + plain_tile, in.q_len) - 1);
  float sums[4] = {};
  for (int key = in.band.first_key(first_query) / plain_tile * plain_tile; key < end; key += plain_tile) {
    PlainAccumulators probabilities, gradients;
    tile_gradients(p, in, stage, b, h, first_query, key, true, probabilities, gradients);
    gradients.for_each([&](float x, int row, int) { sums[row - plain_row()] += x; });
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float sum = group_sum<16>(sums[i]);
    const int query = first_query + plain_row() + i;
    if (plain_column() == 0 && query < in.q_len) {
      p.grad_lse[(std::int64_t(b) * in.heads + h) * in.q_len + query] = -sum;
    }
  }
}

int tiles_of(std::int64_t size, std::int64_t tile) { return static_cast<int>(ceil_div(size, tile)); }

template <class T>
void launch_mask(Params<T> p, const TensorView& grad_mask, const Place& place) {
  p.grad_mask = grad_mask.data;
  p.mask_batch = p.in.query_starts.data ? p.in.query_starts.sequences : p.in.batch;
  p.mask_is_wide = grad_mask.dtype == DType::float32;
  for (int dim = 0; dim < 4; ++dim) p.mask_size[dim] = static_cast<int>(grad_mask.size[dim]);
  for (int dim = 0; dim < 2; ++dim) p.mask_tiles[dim] = tiles_of(p.mask_size[2 + dim], plain_tile);
  const std::int64_t blocks = std::int64_t(p.mask_size[0]) * p.mask_size[1] * p.mask_tiles[0] * p.mask_tiles[1];
  launch(&mask_gradient_kernel<T>, {blocks, plain_threads}, place, p);
}

template <class T>
void launch_lse(Params<T> p, const TensorView& grad_lse, const Place& place) {
  p.grad_lse = static_cast<float*>(grad_lse.data);
  p.row_tiles = tiles_of(p.in.q_len, plain_tile);
  launch(&lse_gradient_kernel<T>, {std::int64_t(p.in.batch) * p.in.heads * p.row_tiles, plain_threads}, place, p);
}

template <class T, int Slices>
void launch_gradient(Params<T> p, const TensorView& gradient, const Place& place) {
  p.gradient = View<T>(gradient);
  p.features = static_cast<int>(gradient.size[3]);
  p.feature_parts = tiles_of(p.features, Slices * plain_tile);
  const Starts& starts = p.which == PlainGradient::query ? p.in.query_starts : p.in.key_starts;
  p.row_tiles = static_cast<int>(starts.tiles(gradient.size[2], plain_tile));
  const std::int64_t blocks = gradient.size[0] * gradient.size[1] * p.row_tiles * p.feature_parts;
  launch(&plain_gradient_kernel<T, Slices>, {blocks, plain_threads}, place, p);
}

template <class T>
void run_as(const PlainBackward& pass, PlainGradient which, const TensorView& gradient, const Place& place) {
  Params<T> p{.in = AttentionTensors<T>(pass.inputs),
              .grad_output = View<const T>(pass.grad_output),
              .grad_weights = View<const T>(pass.grad_weights),
              .grad_weights_scale = pass.grad_weights_scale,
              .terms = pass.terms,
              .which = which};
  if (pass.grad_weights.size[1] == 1) p.grad_weights.head = 0;  // the same for all heads
  if (which == PlainGradient::mask) return launch_mask(p, gradient, place);
  if (which == PlainGradient::lse) return launch_lse(p, gradient, place);
  if constexpr (sizeof(T) == 4) {
    if (gradient.size[3] <= 2 * plain_tile) return launch_gradient<T, 2>(p, gradient, place);
  }
  launch_gradient<T, 4>(p, gradient, place);
}

}  // namespace

void run_plain(const PlainBackward& pass, PlainGradient which, const TensorView& gradient, const Place& place) {
  with_dtype(pass.inputs.query.dtype, [&]<class T>(T) { run_as<T>(pass, which, gradient, place); });
}

}  // namespace bigmodel::cuda
