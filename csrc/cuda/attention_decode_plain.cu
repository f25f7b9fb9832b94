// attention_decode without tensor cores, for whatever attention_decode.cu does not take: products are fp32, straight
// from 128 bits of the cache in registers. Each warp walks over tiles of keys of its own.
#include "cuda/attention_decode_work.cuh"
#include "cuda/launch.cuh"

namespace bigmodel::cuda {
namespace {

// Of a product with keys: lanes that share a key, and how many keys such a group of lanes takes at once.
constexpr int key_lanes = 8, keys_at_once = 4, group_keys = warp_size / key_lanes * keys_at_once;

template <class C>
struct Params : DecodeParams<C> {
  int query_pitch;  // of shared memory: features of a row, filled up with zeros to what key_lanes read at once
  int value_lanes;  // a power of two: lanes that share a value, each with a chunk of it
};

// Columns of the output that a lane sums: those of a chunk, of fp32 of two.
template <class C>
constexpr int value_chunks = sizeof(C) == 4 ? 2 : 1;
template <class C>
constexpr int lane_columns = Pack<C>::size * value_chunks<C>;

// Queries in shared memory, times the factor: of each row first, of all lanes that share a key, the first four features
// of their first chunks, then the next four ..., so that lanes read side by side.
template <int Rows, class C>
__device__ void stage_queries(const Params<C>& p, const Work& work, float* to) {
  constexpr int quads = Pack<C>::size / 4;
  for (int i = static_cast<int>(threadIdx.x); i < Rows * p.query_pitch; i += decode_threads) {
    const int row = i / p.query_pitch, at = i % p.query_pitch;
    const int lane = at / 4 % key_lanes, quad = at / 4 / key_lanes;
    const int feature = (quad / quads * key_lanes + lane) * Pack<C>::size + quad % quads * 4 + at % 4;
    const Row r(p, work, row);
    to[i] = feature < p.key.features ? p.query.load(work.batch, r.head, r.token, feature) * p.factor : 0.0f;
  }
}

// Four rows' scores or weights of a key, beside each other for every key. Of the second four rows the keys' order is
// another, so that lanes write to different banks.
__device__ inline float* four_rows(float* scores, int quad, int key) {
  return scores + (quad * tile_keys + (key ^ quad * 4)) * 4;
}

// Sums over two lanes that differ in a bit of two numbers each: the lane without it gets the first's.
__device__ inline float split_sum(float first, float second, int bit) {
  const bool has_it = lane_id() & bit;
  return (has_it ? second : first) + __shfl_xor_sync(whole_warp, has_it ? first : second, bit);
}

// Products of the rows with group_keys keys, summed over key_lanes lanes; a lane ends with four rows of one key.
template <int Rows>
__device__ void store_sums(const float (&dots)[keys_at_once][Rows], int first_key, float* scores) {
  float sums[Rows];
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    sums[r] = split_sum(split_sum(dots[0][r], dots[1][r], 1), split_sum(dots[2][r], dots[3][r], 1), 2);
  }
  const int lane = lane_id(), quad = Rows > 4 ? lane % key_lanes / 4 : 0;
  float four[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    four[i] = Rows > 4 ? split_sum(sums[i], sums[Rows - 4 + i], 4) : sums[i] + __shfl_xor_sync(whole_warp, sums[i], 4);
  }
  const int key = first_key + lane / key_lanes * keys_at_once + lane % 4;
  if (Rows > 4 || lane % key_lanes < 4) {
    *reinterpret_cast<float4*>(four_rows(scores, quad, key)) = {four[0], four[1], four[2], four[3]};
  }
}

// Q K^T of a tile, into shared memory.
template <int Rows, bool Packed, class C>
__device__ void multiply_keys(const Params<C>& p, const float* queries, std::int64_t key_at, float* scores) {
  constexpr int chunk = Pack<C>::size;
  const int lane = lane_id() % key_lanes;
#pragma unroll 1
  for (int first = 0; first < tile_keys; first += group_keys) {
    std::int64_t at[keys_at_once];
#pragma unroll
    for (int j = 0; j < keys_at_once; ++j) {
      at[j] = __shfl_sync(whole_warp, key_at, first + lane_id() / key_lanes * keys_at_once + j);
    }
    float dots[keys_at_once][Rows] = {};
    const float* query = queries + 4 * lane;
    for (int column = 0; column < p.key.features; column += key_lanes * chunk) {
      Pack<C> k[keys_at_once];
#pragma unroll
      for (int j = 0; j < keys_at_once; ++j) k[j] = load_chunk<Packed>(p.key, at[j], column + lane * chunk);
#pragma unroll
      for (int i = 0; i < chunk; i += 4, query += 4 * key_lanes) {
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
          const float4 q = *reinterpret_cast<const float4*>(query + r * p.query_pitch);
#pragma unroll
          for (int j = 0; j < keys_at_once; ++j) {
            dots[j][r] = fmaf(q.x, to_float(k[j].element[i]), dots[j][r]);
            dots[j][r] = fmaf(q.y, to_float(k[j].element[i + 1]), dots[j][r]);
            dots[j][r] = fmaf(q.z, to_float(k[j].element[i + 2]), dots[j][r]);
            dots[j][r] = fmaf(q.w, to_float(k[j].element[i + 3]), dots[j][r]);
          }
        }
      }
    }
    store_sums(dots, first, scores);
  }
}

// What a warp knows of its rows. Sums are of a lane's keys, until all is merged.
template <class C, int Rows>
struct State {
  float maximum[Rows], sum[Rows];
  float output[Rows][lane_columns<C>];

  __device__ State() {
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      maximum[r] = -INFINITY;
      sum[r] = 0.0f;
#pragma unroll
      for (int i = 0; i < lane_columns<C>; ++i) output[r][i] = 0.0f;
    }
  }
  // For the scores of the lane's key: the maximum is renewed only when one has grown by more than a factor of 2^8.
  __device__ void renew(const float (&score)[Rows]) {
    constexpr float tolerated = 8.0f / log2_e;
    bool grown = false;
#pragma unroll
    for (int r = 0; r < Rows; ++r) grown |= score[r] > maximum[r] + tolerated;
    if (!__any_sync(whole_warp, grown)) return;
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      const float largest = fmaxf(maximum[r], group_max(score[r]));
      const float factor = ptx::exp2((maximum[r] - OnlineSoftmax<false>::shift(largest)) * log2_e);
      maximum[r] = largest;
      sum[r] *= factor;
#pragma unroll
      for (int i = 0; i < lane_columns<C>; ++i) output[r][i] *= factor;
    }
  }
};

// Products to weights, in place: a lane takes its key of all rows.
template <class C, int Rows>
__device__ void weigh_keys(const Params<C>& p, const Work& work, const Key& key, const int (&token)[Rows],
                           State<C, Rows>& state, float* scores) {
  float score[Rows];
#pragma unroll
  for (int r = 0; r < Rows; r += 4) {
    const float4 four = *reinterpret_cast<const float4*>(four_rows(scores, r / 4, lane_id()));
    score[r] = four.x, score[r + 1] = four.y, score[r + 2] = four.z, score[r + 3] = four.w;
  }
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    if constexpr (sizeof(C) == 1) score[r] *= key.key_scale;
    if (p.bound > 0.0f) score[r] = p.bound * tanhf(score[r]);
    if (key.missing) score[r] = NAN;
    const int own = work.diagonal + token[r];
    if (!key.seen || key.position > own || key.position < own - p.before) score[r] = -INFINITY;
  }
  state.renew(score);
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    score[r] = ptx::exp2((score[r] - OnlineSoftmax<false>::shift(state.maximum[r])) * log2_e);
    state.sum[r] += score[r];
    if constexpr (sizeof(C) == 1) score[r] *= key.value_scale;
  }
#pragma unroll
  for (int r = 0; r < Rows; r += 4) {
    *reinterpret_cast<float4*>(four_rows(scores, r / 4, lane_id())) = {score[r], score[r + 1], score[r + 2],
                                                                       score[r + 3]};
  }
}

// output += P V of a tile: value_lanes lanes take a value, the next as many another.
template <int Rows, bool Packed, class C>
__device__ void add_values(const Params<C>& p, const Work& work, std::int64_t value_at, float* weights,
                           State<C, Rows>& state) {
  constexpr int chunk = Pack<C>::size, values_at_once = 4;
  const int at_once = warp_size / p.value_lanes, group = lane_id() / p.value_lanes;
  const int lane = lane_id() % p.value_lanes;
#pragma unroll 1
  for (int first = 0; first < tile_keys; first += values_at_once * at_once) {
    Pack<C> v[values_at_once][value_chunks<C>];
#pragma unroll
    for (int j = 0; j < values_at_once; ++j) {
      const int key = first + j * at_once + group;
      const std::int64_t at = __shfl_sync(whole_warp, value_at, key % tile_keys);
#pragma unroll
      for (int i = 0; i < value_chunks<C>; ++i) {
        const int column = work.first_column + (i * p.value_lanes + lane) * chunk;
        v[j][i] = load_chunk<Packed>(p.value, key < tile_keys ? at : -1, column);
      }
    }
#pragma unroll
    for (int j = 0; j < values_at_once; ++j) {
      const int key = (first + j * at_once + group) % tile_keys;
#pragma unroll
      for (int r = 0; r < Rows; r += 4) {
        const float4 four = *reinterpret_cast<const float4*>(four_rows(weights, r / 4, key));
#pragma unroll
        for (int i = 0; i < lane_columns<C>; ++i) {
          const float x = to_float(v[j][i / chunk].element[i % chunk]);
          state.output[r][i] = fmaf(four.x, x, state.output[r][i]);
          state.output[r + 1][i] = fmaf(four.y, x, state.output[r + 1][i]);
          state.output[r + 2][i] = fmaf(four.z, x, state.output[r + 2][i]);
          state.output[r + 3][i] = fmaf(four.w, x, state.output[r + 3][i]);
        }
      }
    }
  }
}

// Leaves a warp's state where merge_warps finds it; its output as [Rows, width].
template <class C, int Rows>
__device__ void store_state(const Params<C>& p, State<C, Rows>& state, Warps<Rows>& warps, float* outputs) {
  constexpr int chunk = Pack<C>::size;
  const int lane = lane_id();
  float* const to = outputs + warp_id() * Rows * p.width;
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    const float sum = group_sum(state.sum[r]);
    if (lane == 0) warps.maximum[warp_id()][r] = state.maximum[r], warps.sum[warp_id()][r] = sum;
#pragma unroll
    for (int i = 0; i < lane_columns<C>; i += 4) {
      float four[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        four[j] = state.output[r][i + j];
        for (int step = p.value_lanes; step < warp_size; step *= 2) {
          four[j] += __shfl_xor_sync(whole_warp, four[j], step);
        }
      }
      const int column = (i / chunk * p.value_lanes + lane) * chunk + i % chunk;
      if (lane < p.value_lanes) {
        *reinterpret_cast<float4*>(to + r * p.width + column) = {four[0], four[1], four[2], four[3]};
      }
    }
  }
}

template <class C, int Rows, bool Packed>
__global__ __launch_bounds__(decode_threads, 2) void plain_decode_kernel(const __grid_constant__ Params<C> p) {
  // Queries [Rows, query_pitch] and each warp's scores; in the end the warps' outputs.
  extern __shared__ __align__(16) float shared[];
  __shared__ Warps<Rows> warps;
  const Work work(p, Rows);
  stage_queries<Rows>(p, work, shared);
  float* const scores = shared + Rows * p.query_pitch + warp_id() * Rows * tile_keys;
  int token[Rows];
#pragma unroll
  for (int r = 0; r < Rows; ++r) token[r] = Row(p, work, r).token;
  __syncthreads();
  State<C, Rows> state;
  for (int tile = work.first_tile + warp_id(); tile < work.end_tile; tile += decode_warps) {
    const Key key(p, work, tile * tile_keys + lane_id());
    multiply_keys<Rows, Packed>(p, shared, key.key_at, scores);
    __syncwarp();
    weigh_keys(p, work, key, token, state, scores);
    __syncwarp();
    add_values<Rows, Packed>(p, work, key.value_at, scores, state);
    __syncwarp();
  }
  __syncthreads();
  store_state(p, state, warps, shared);
  __syncthreads();
  if (threadIdx.x < Rows) finish_row(p, work, static_cast<int>(threadIdx.x), warps);
  __syncthreads();
  store_result(p, work, warps, shared, [&](int row, int column) { return row * p.width + column; });
}

// Lanes that share a value of a cache of C.
template <class C>
int lanes_of(std::int64_t value_dim) {
  int lanes = 1;
  while (lanes < warp_size && lanes * Pack<C>::size < value_dim) lanes *= 2;
  return lanes;
}

template <class C, int Rows>
void launch_rows(const AttentionDecodeArgs& args, const DecodeDivision& d, const Place& place) {
  constexpr int read_at_once = key_lanes * Pack<C>::size;
  const auto features = static_cast<int>(args.query.size[3]);
  Params<C> p{params_of<C>(args, d)};
  p.query_pitch = round_up(features, read_at_once);
  p.value_lanes = lanes_of<C>(args.value_cache.size[3]);
  const int floats = Rows * std::max(p.query_pitch + decode_warps * tile_keys, decode_warps * d.width);
  const Launch shape{d.blocks, decode_threads, std::int64_t(sizeof(float)) * floats};
  if (has_packed_rows(args.key_cache) && has_packed_rows(args.value_cache)) {
    launch(&plain_decode_kernel<C, Rows, true>, shape, place, p);
  } else {
    launch(&plain_decode_kernel<C, Rows, false>, shape, place, p);
  }
}

}  // namespace

DecodeDivision divide_plain(const AttentionDecodeArgs& args, const Place& place) {
  const std::int64_t rows = args.query.size[1] / args.key_cache.size[1] * args.query.size[2];
  DecodeDivision d;
  with_cache_dtype(args.key_cache.dtype, [&]<class C>(C) {
    // Of int8 a lane has sixteen columns, and of eight rows their sums would not fit beside the rest.
    const int at_once = sizeof(C) > 1 && rows > 4 ? 8 : 4;
    d = divide(args, place, at_once, lanes_of<C>(args.value_cache.size[3]) * lane_columns<C>);
  });
  return d;
}

void run_plain(const AttentionDecodeArgs& args, const DecodeDivision& d, const Place& place) {
  with_cache_dtype(args.key_cache.dtype, [&]<class C>(C) {
    if (d.rows == 4) return launch_rows<C, 4>(args, d, place);
    if constexpr (sizeof(C) > 1) launch_rows<C, 8>(args, d, place);
  });
}

}  // namespace bigmodel::cuda
