// attention_decode: a few new queries over a cache, which memory bounds. The queries of all heads that share keys are
// the rows of one block, so that they read the cache once; products are fp32, straight from 128 bits of the cache in
// registers. Each warp walks over tiles of keys of its own (Dao, Haziza, Massa and Sizov, "Flash-Decoding for
// long-context inference", 2023); warps, and then blocks that share a sequence's keys, are merged in a fixed order.
#include <algorithm>
#include <cmath>

#include "cuda/attention_decode.cuh"
#include "cuda/attention_forward.cuh"
#include "cuda/attention_scores.cuh"
#include "cuda/launch.cuh"
#include "cuda/online_softmax.cuh"
#include "cuda/pack_rows.h"
#include "cuda/warp.cuh"

namespace bigmodel::cuda {
namespace {

constexpr int decode_warps = 4, decode_threads = decode_warps * warp_size;
constexpr int tile_keys = warp_size;  // of a warp: between the products a lane has a key
// Of a product with keys: lanes that share a key, and how many keys such a group of lanes takes at once.
constexpr int key_lanes = 8, keys_at_once = 4, group_keys = warp_size / key_lanes * keys_at_once;

// Query and output: of any dtype, and touched a few times in a call.
struct AnyView {
  View<void> view;
  DType dtype;

  explicit AnyView(const TensorView& tensor) : view(tensor), dtype(tensor.dtype) {}
  template <class T>
  __device__ T* at(int b, int h, int r, int c) const {
    return static_cast<T*>(view.data) + b * view.batch + h * view.head + r * view.row + c * view.column;
  }
  __device__ float load(int b, int h, int r, int c) const {
    if (dtype == DType::float32) return *at<float>(b, h, r, c);
    return dtype == DType::float16 ? to_float(*at<half>(b, h, r, c)) : to_float(*at<bf16>(b, h, r, c));
  }
  __device__ void store(int b, int h, int r, int c, float x) const {
    if (dtype == DType::float32) {
      *at<float>(b, h, r, c) = x;
    } else if (dtype == DType::float16) {
      *at<half>(b, h, r, c) = from_float<half>(x);
    } else {
      *at<bf16>(b, h, r, c) = from_float<bf16>(x);
    }
  }
};

template <class C>
struct Params {
  AnyView query, output;
  Cache<C> key, value;
  Places places;
  float* lse;
  const float* sinks;
  std::int64_t sink_stride;
  int heads, kv_heads, group, before;
  float factor, bound;  // scores are bound * tanh(factor * product), or without a bound factor * product
  int query_pitch;      // of shared memory: features of a row, filled up with zeros to what key_lanes read at once
  int value_lanes;      // a power of two: lanes that share a value, each with a chunk of it
  int row_tiles, value_parts;
  Splits splits;
};

// Columns of the output that a lane sums: those of a chunk, of fp32 of two.
template <class C>
constexpr int value_chunks = sizeof(C) == 4 ? 2 : 1;
template <class C>
constexpr int lane_columns = Pack<C>::size * value_chunks<C>;

// A block's place in the work, and what its rows see.
struct Work {
  int batch, kv_head, first_row, split, first_column;
  int diagonal, lowest, end;  // of the first query; the keys that any query sees

  template <class C>
  __device__ Work(const Params<C>& p, int rows) {
    int block = static_cast<int>(blockIdx.x);
    split = block % p.splits.count;
    block /= p.splits.count;
    first_column = block % p.value_parts * p.value_lanes * lane_columns<C>;
    block /= p.value_parts;
    first_row = block % p.row_tiles * rows;
    block /= p.row_tiles;
    kv_head = block % p.kv_heads;
    batch = block / p.kv_heads;
    const int total = p.places.total(batch);
    diagonal = total - p.places.q_len;
    lowest = max(diagonal - p.before, 0);
    end = min(total, p.places.capacity);
  }
};

// A row of a block: the query of one head; rows beyond the last are it again.
struct Row {
  int head, token;

  template <class C>
  __device__ Row(const Params<C>& p, const Work& work, int i) {
    const int row = min(work.first_row + i, p.group * p.places.q_len - 1);
    head = work.kv_head * p.group + row / p.places.q_len;
    token = row % p.places.q_len;
  }
};

// A lane's key of a tile. Of one that no query sees the offsets are negative, as are those of one that is not there.
struct Key {
  int position;
  bool seen, missing;
  std::int64_t key_at = -1, value_at = -1;
  float key_scale = 1.0f, value_scale = 1.0f;

  template <class C>
  __device__ Key(const Params<C>& p, const Work& work, int position) : position(position) {
    seen = position >= work.lowest && position < work.end;
    missing = false;
    if (!seen) return;
    const Entry entry = p.places.find(work.batch, position);
    missing = !entry.exists;
    if (missing) return;
    key_at = p.key.at(entry, work.kv_head);
    value_at = p.value.at(entry, work.kv_head);
    if constexpr (sizeof(C) == 1) {
      key_scale = p.key.scale(entry, work.kv_head);
      value_scale = p.value.scale(entry, work.kv_head);
    }
  }
};

// The chunk of an entry from `column` on; zeros beyond its end, and where there is none.
template <bool Packed, class C>
__device__ Pack<C> load_chunk(const Cache<C>& cache, std::int64_t at, int column) {
  if constexpr (Packed) {
    uint4 bits{};
    if (at >= 0 && column < cache.features) bits = *reinterpret_cast<const uint4*>(cache.data + at + column);
    return reinterpret_cast<const Pack<C>&>(bits);
  } else {
    Pack<C> pack;
#pragma unroll
    for (int i = 0; i < Pack<C>::size; ++i) {
      pack.element[i] = at >= 0 && column + i < cache.features ? cache.data[at + column + i] : C(0.0f);
    }
    return pack;
  }
}

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
  // What is subtracted: 0 while no key was seen, so that -inf - -inf does not happen.
  __device__ static float shift(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

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
      const float factor = ptx::exp2((maximum[r] - shift(largest)) * log2_e);
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
    score[r] = ptx::exp2((score[r] - State<C, Rows>::shift(state.maximum[r])) * log2_e);
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

// A block's warps, in shared memory.
template <int Rows>
struct Warps {
  float maximum[decode_warps][Rows], sum[decode_warps][Rows];
  float factor[decode_warps][Rows];  // of a warp's output in the result
};

// Leaves a warp's state where merge_warps finds it; its output as [Rows, value_lanes * lane_columns].
template <class C, int Rows>
__device__ void store_state(const Params<C>& p, State<C, Rows>& state, Warps<Rows>& warps, float* outputs) {
  constexpr int chunk = Pack<C>::size;
  const int width = p.value_lanes * lane_columns<C>, lane = lane_id();
  float* const to = outputs + warp_id() * Rows * width;
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
        *reinterpret_cast<float4*>(to + r * width + column) = {four[0], four[1], four[2], four[3]};
      }
    }
  }
}

// A row's end: its log-sum-exp, and how much of each warp's output is in the result. NaN where the query's own key has
// no place in the cache, or another is missing.
template <class C, int Rows>
__device__ void finish_row(const Params<C>& p, const Work& work, int i, Warps<Rows>& warps) {
  const Row row(p, work, i);
  const bool whole = p.splits.count == 1;
  float largest = -INFINITY, sum = 0.0f;
  for (int warp = 0; warp < decode_warps; ++warp) largest = fmaxf(largest, warps.maximum[warp][i]);
  const float shift = State<C, Rows>::shift(largest);
  for (int warp = 0; warp < decode_warps; ++warp) {
    const float factor = ptx::exp2((warps.maximum[warp][i] - shift) * log2_e);
    warps.factor[warp][i] = factor;
    sum += factor * warps.sum[warp][i];
  }
  const RowEnd end(largest, sum, whole && p.sinks ? p.sinks[row.head * p.sink_stride] : -INFINITY);
  const bool known = sum == sum && work.diagonal + row.token < p.places.capacity;
  for (int warp = 0; warp < decode_warps; ++warp) warps.factor[warp][i] *= known ? end.factor : NAN;
  if (work.first_column > 0 || work.first_row + i >= p.group * p.places.q_len) return;
  const std::int64_t at = (std::int64_t(work.batch) * p.heads + row.head) * p.places.q_len + row.token;
  (whole ? p.lse : p.splits.lse + work.split * p.splits.rows)[at] = known ? end.lse : NAN;
}

// The output of all warps together, or this split's part of it.
template <class C, int Rows>
__device__ void store_result(const Params<C>& p, const Work& work, const Warps<Rows>& warps, const float* outputs) {
  const int width = p.value_lanes * lane_columns<C>, value_dim = p.value.features;
  const int rows = min(p.group * p.places.q_len - work.first_row, Rows);
  for (int i = static_cast<int>(threadIdx.x); i < rows * width; i += decode_threads) {
    const int r = i / width, column = work.first_column + i % width;
    if (column >= value_dim) continue;
    float x = 0.0f;
#pragma unroll
    for (int warp = 0; warp < decode_warps; ++warp) x += warps.factor[warp][r] * outputs[warp * Rows * width + i];
    const Row row(p, work, r);
    if (p.splits.count == 1) {
      p.output.store(work.batch, row.head, row.token, column, x);
    } else {
      const std::int64_t at = (std::int64_t(work.batch) * p.heads + row.head) * p.places.q_len + row.token;
      p.splits.output[(work.split * p.splits.rows + at) * value_dim + column] = x;
    }
  }
}

template <class C, int Rows, bool Packed>
__global__ __launch_bounds__(decode_threads, 2) void attention_decode_kernel(const __grid_constant__ Params<C> p) {
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

  const int first_tile = work.lowest / tile_keys, end_tile = (work.end + tile_keys - 1) / tile_keys;
  const int each = (max(end_tile - first_tile, 0) + p.splits.count - 1) / p.splits.count;
  const int begin = first_tile + work.split * each, end = min(begin + each, end_tile);
  State<C, Rows> state;
  for (int tile = begin + warp_id(); tile < end; tile += decode_warps) {
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
  store_result(p, work, warps, shared);
}

// What merge_splits wants to know.
AttentionForwardArgs as_attention(const AttentionDecodeArgs& args) {
  AttentionForwardArgs attention;
  attention.inputs.sinks = args.sinks;
  attention.output = args.output;
  attention.lse = args.lse;
  return attention;
}

// How one call is divided; decided by shapes and the device alone.
struct Division {
  int rows, row_tiles, value_lanes, value_parts, query_pitch, splits;
  std::int64_t blocks, shared;
};

template <class C>
Division divide(const AttentionDecodeArgs& args, const Places& places, const Place& place) {
  constexpr int chunk = Pack<C>::size;
  const auto parts = [](std::int64_t all, int each) { return static_cast<int>((all + each - 1) / each); };
  const TensorView& value = args.value_cache;
  const auto unit_rows = static_cast<int>(args.query.size[1] / value.size[1] * args.query.size[2]);
  Division d;
  // Of int8 a lane has sixteen columns, and of eight rows their sums would not fit beside the rest.
  d.rows = sizeof(C) > 1 && unit_rows > 4 ? 8 : 4;
  d.row_tiles = parts(unit_rows, d.rows);
  d.value_lanes = 1;
  while (d.value_lanes < warp_size && d.value_lanes * chunk < value.size[3]) d.value_lanes *= 2;
  const int width = d.value_lanes * lane_columns<C>;
  d.value_parts = parts(value.size[3], width);
  d.query_pitch = parts(args.query.size[3], key_lanes * chunk) * key_lanes * chunk;
  d.blocks = args.query.size[0] * value.size[1] * d.row_tiles * d.value_parts;
  // Of a window, the most keys that a sequence's queries see.
  constexpr int piece = 64;
  std::int64_t reach = places.capacity;
  if (args.window_left >= 0) reach = std::min(reach, args.window_left + places.q_len + piece);
  d.splits = choose_splits(d.blocks, parts(reach, piece), place);
  d.blocks *= d.splits;
  const std::int64_t floats = d.rows * std::max(d.query_pitch + decode_warps * tile_keys, decode_warps * width);
  d.shared = std::int64_t(sizeof(float)) * floats;
  return d;
}

template <class C>
Params<C> params_of(const AttentionDecodeArgs& args, const Places& places, const Division& d) {
  const bool bounded = args.softcap > 0.0f;
  const std::int64_t unbounded = 1 << 28;
  Workspace workspace(args.workspace);
  return {.query = AnyView(args.query),
          .output = AnyView(args.output),
          .key = Cache<C>(args.key_cache, args.key_scales),
          .value = Cache<C>(args.value_cache, args.value_scales),
          .places = places,
          .lse = static_cast<float*>(args.lse.data),
          .sinks = static_cast<const float*>(args.sinks.data),
          .sink_stride = args.sinks.stride[0],
          .heads = static_cast<int>(args.query.size[1]),
          .kv_heads = static_cast<int>(args.key_cache.size[1]),
          .group = static_cast<int>(args.query.size[1] / args.key_cache.size[1]),
          .before = static_cast<int>(args.window_left < 0 ? unbounded : std::min(args.window_left, unbounded)),
          .factor = bounded ? args.scale / args.softcap : args.scale,
          .bound = bounded ? args.softcap : 0.0f,
          .query_pitch = d.query_pitch,
          .value_lanes = d.value_lanes,
          .row_tiles = d.row_tiles,
          .value_parts = d.value_parts,
          .splits = Splits::in(workspace, d.splits, as_attention(args))};
}

template <class C, int Rows>
void launch_rows(const AttentionDecodeArgs& args, const Params<C>& p, const Division& d, const Place& place) {
  const Launch shape{d.blocks, decode_threads, d.shared};
  if (has_packed_rows(args.key_cache) && has_packed_rows(args.value_cache)) {
    launch(&attention_decode_kernel<C, Rows, true>, shape, place, p);
  } else {
    launch(&attention_decode_kernel<C, Rows, false>, shape, place, p);
  }
}

}  // namespace

std::int64_t workspace_bytes(const AttentionDecodeArgs& args, const Place& place) {
  Workspace workspace;
  with_cache_dtype(args.key_cache.dtype, [&]<class C>(C) {
    Splits::in(workspace, divide<C>(args, Places(args), place).splits, as_attention(args));
  });
  return workspace.used();
}

void run(const AttentionDecodeArgs& args, const Place& place) {
  if (args.new_key.data) append(args, place);
  with_cache_dtype(args.key_cache.dtype, [&]<class C>(C) {
    const Places places(args);
    const Division d = divide<C>(args, places, place);
    const Params<C> p = params_of<C>(args, places, d);
    if (d.rows == 4) launch_rows<C, 4>(args, p, d, place);
    if constexpr (sizeof(C) > 1) {
      if (d.rows == 8) launch_rows<C, 8>(args, p, d, place);
    }
    if (d.splits > 1) merge_splits(as_attention(args), p.splits, place);
  });
}

}  // namespace bigmodel::cuda
