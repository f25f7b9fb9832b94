// What decoding's kernels with and without tensor cores share: a block's place in the work, its keys, and how the
// results of its warps, and of blocks that share a sequence's keys, become one (Dao, Haziza, Massa and Sizov,
// "Flash-Decoding for long-context inference", 2023). The order of additions is fixed.
#pragma once

#include <algorithm>
#include <cmath>

#include "cuda/attention_decode.cuh"
#include "cuda/attention_forward.cuh"
#include "cuda/attention_scores.cuh"
#include "cuda/online_softmax.cuh"
#include "cuda/pack_rows.h"
#include "cuda/warp.cuh"

namespace bigmodel::cuda {

inline constexpr int decode_warps = 4, decode_threads = decode_warps * warp_size;
inline constexpr int tile_keys = warp_size;  // of a warp: between the products a lane has a key

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
struct DecodeParams {
  AnyView query, output;
  Cache<C> key, value;
  Places places;
  float* lse;
  const float* sinks;
  std::int64_t sink_stride;
  int heads, kv_heads, group, before;
  float factor, bound;                // scores are bound * tanh(factor * product), or without a bound factor * product
  int row_tiles, value_parts, width;  // width: columns of the output that a block computes, one of the parts
  Splits splits;
};

// A block's place in the work, and what its rows see.
struct Work {
  int batch, kv_head, first_row, split, first_column;
  int diagonal, lowest, end;  // of the first query; the keys that any query sees
  int first_tile, end_tile;   // of keys, for all warps in turn

  template <class C>
  __device__ Work(const DecodeParams<C>& p, int rows) {
    int block = static_cast<int>(blockIdx.x);
    split = block % p.splits.count;
    block /= p.splits.count;
    first_column = block % p.value_parts * p.width;
    block /= p.value_parts;
    first_row = block % p.row_tiles * rows;
    block /= p.row_tiles;
    kv_head = block % p.kv_heads;
    batch = block / p.kv_heads;
    const int total = p.places.total(batch);
    diagonal = total - p.places.q_len;
    lowest = max(diagonal - p.before, 0);
    end = min(total, p.places.capacity);
    const int first = lowest / tile_keys, past = ceil_div(end, tile_keys);
    const int each = ceil_div(max(past - first, 0), p.splits.count);
    first_tile = first + split * each;
    end_tile = min(first_tile + each, past);
  }
};

// A row of a block: the query of one head; rows beyond the last are it again, and do not exist.
struct Row {
  int head, token;
  bool exists;

  template <class C>
  __device__ Row(const DecodeParams<C>& p, const Work& work, int i) {
    const int last = p.group * p.places.q_len - 1, row = min(work.first_row + i, last);
    exists = work.first_row + i <= last;
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
  __device__ Key(const DecodeParams<C>& p, const Work& work, int position) : position(position) {
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

// A block's warps, in shared memory.
template <int Rows>
struct Warps {
  float maximum[decode_warps][Rows], sum[decode_warps][Rows];
  float factor[decode_warps][Rows];  // of a warp's output in the result
};

// A row's end: its log-sum-exp, and how much of each warp's output is in the result. NaN where the query's own key has
// no place in the cache, or another is missing.
template <class C, int Rows>
__device__ void finish_row(const DecodeParams<C>& p, const Work& work, int i, Warps<Rows>& warps) {
  const Row row(p, work, i);
  const bool whole = p.splits.count == 1;
  float largest = -INFINITY, sum = 0.0f;
  for (int warp = 0; warp < decode_warps; ++warp) largest = fmaxf(largest, warps.maximum[warp][i]);
  const float shift = OnlineSoftmax<false>::shift(largest);
  for (int warp = 0; warp < decode_warps; ++warp) {
    const float factor = ptx::exp2((warps.maximum[warp][i] - shift) * log2_e);
    warps.factor[warp][i] = factor;
    sum += factor * warps.sum[warp][i];
  }
  const RowEnd end(largest, sum, whole && p.sinks ? p.sinks[row.head * p.sink_stride] : -INFINITY);
  const bool known = sum == sum && work.diagonal + row.token < p.places.capacity;
  for (int warp = 0; warp < decode_warps; ++warp) warps.factor[warp][i] *= known ? end.factor : NAN;
  if (work.first_column > 0 || !row.exists) return;
  const std::int64_t at = (std::int64_t(work.batch) * p.heads + row.head) * p.places.q_len + row.token;
  (whole ? p.lse : p.splits.lse + work.split * p.splits.rows)[at] = known ? end.lse : NAN;
}

// The output of all warps together, or this split's part of it. place(row, column): in a warp's of the outputs.
template <class C, int Rows, class Place>
__device__ void store_result(const DecodeParams<C>& p, const Work& work, const Warps<Rows>& warps, const float* outputs,
                             Place place) {
  const int value_dim = p.value.features;
  const int rows = min(p.group * p.places.q_len - work.first_row, Rows);
  for (int i = static_cast<int>(threadIdx.x); i < rows * p.width; i += decode_threads) {
    const int r = i / p.width, column = work.first_column + i % p.width, at = place(r, i % p.width);
    if (column >= value_dim) continue;
    float x = 0.0f;
#pragma unroll
    for (int warp = 0; warp < decode_warps; ++warp) x += warps.factor[warp][r] * outputs[warp * Rows * p.width + at];
    const Row row(p, work, r);
    if (p.splits.count == 1) {
      p.output.store(work.batch, row.head, row.token, column, x);
    } else {
      const std::int64_t whole_row = (std::int64_t(work.batch) * p.heads + row.head) * p.places.q_len + row.token;
      p.splits.output[(work.split * p.splits.rows + whole_row) * value_dim + column] = x;
    }
  }
}

// What merge_splits wants to know.
inline AttentionForwardArgs as_attention(const AttentionDecodeArgs& args) {
  AttentionForwardArgs attention;
  attention.inputs.sinks = args.sinks;
  attention.output = args.output;
  attention.lse = args.lse;
  return attention;
}

// How one call is divided; decided by shapes and the device alone.
struct DecodeDivision {
  int rows, row_tiles, width, value_parts, splits;
  std::int64_t blocks;
};

// rows and width: of the output that a block computes.
inline DecodeDivision divide(const AttentionDecodeArgs& args, const Place& place, int rows, int width) {
  const TensorView& value = args.value_cache;
  const Places places(args);
  DecodeDivision d{.rows = rows, .width = width};
  d.row_tiles = static_cast<int>(ceil_div(args.query.size[1] / value.size[1] * args.query.size[2], rows));
  d.value_parts = static_cast<int>(ceil_div(value.size[3], width));
  d.blocks = args.query.size[0] * value.size[1] * d.row_tiles * d.value_parts;
  // Of a window, the most keys that a sequence's queries see.
  constexpr int piece = 64;
  std::int64_t reach = places.capacity;
  if (args.window_left >= 0) reach = std::min(reach, args.window_left + places.q_len + piece);
  d.splits = choose_splits(d.blocks, static_cast<int>(ceil_div(reach, piece)), place);
  d.blocks *= d.splits;
  return d;
}

template <class C>
DecodeParams<C> params_of(const AttentionDecodeArgs& args, const DecodeDivision& d) {
  const bool bounded = args.softcap > 0.0f;
  const std::int64_t unbounded = 1 << 28;
  Workspace workspace(args.workspace);
  return {.query = AnyView(args.query),
          .output = AnyView(args.output),
          .key = Cache<C>(args.key_cache, args.key_scales),
          .value = Cache<C>(args.value_cache, args.value_scales),
          .places = Places(args),
          .lse = static_cast<float*>(args.lse.data),
          .sinks = static_cast<const float*>(args.sinks.data),
          .sink_stride = args.sinks.stride[0],
          .heads = static_cast<int>(args.query.size[1]),
          .kv_heads = static_cast<int>(args.key_cache.size[1]),
          .group = static_cast<int>(args.query.size[1] / args.key_cache.size[1]),
          .before = static_cast<int>(args.window_left < 0 ? unbounded : std::min(args.window_left, unbounded)),
          .factor = bounded ? args.scale / args.softcap : args.scale,
          .bound = bounded ? args.softcap : 0.0f,
          .row_tiles = d.row_tiles,
          .value_parts = d.value_parts,
          .width = d.width,
          .splits = Splits::in(workspace, d.splits, as_attention(args))};
}

// What attention_decode.cu does not take.
DecodeDivision divide_plain(const AttentionDecodeArgs& args, const Place& place);
void run_plain(const AttentionDecodeArgs& args, const DecodeDivision& d, const Place& place);

}  // namespace bigmodel::cuda
