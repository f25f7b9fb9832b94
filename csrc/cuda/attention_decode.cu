// attention_decode on tensor cores, of fp16 and bf16 over caches of the same dtype or of int8: the queries of all heads
// that share keys are sixteen rows of one tile, so that they read the cache once. Each warp walks over tiles of keys of
// its own, and its operands come straight from 128 bits of the cache in registers: a product sums over features, and
// later over keys, in any order, so that each lane takes those that lie side by side. Heads may have any size: the
// queries are in shared memory, and blocks share an output of more columns than the registers of one hold.
#include "cuda/attention_decode_work.cuh"
#include "cuda/launch.cuh"

namespace bigmodel::cuda {
namespace {

constexpr int tile_rows = 16;
constexpr int tile_columns = 128;     // of the output, of a block; 64 where these are all and a lane's chunks allow it
constexpr int features_at_once = 64;  // of keys; of int8 twice as many would spill on sm_75

// Sixteen bits for each element of two neighbours of a chunk, the first in the low half.
template <class T, class C>
__device__ std::uint32_t neighbours(const Pack<C>& chunk, int i) {
  if constexpr (sizeof(C) == 2) {
    return reinterpret_cast<const std::uint32_t (&)[4]>(chunk)[i / 2];
  } else {
    return pack2<T>(to_float(chunk.element[i]), to_float(chunk.element[i + 1]));
  }
}

// The same of element i of two chunks, of int8 times their scales.
template <class T, class C>
__device__ std::uint32_t beside(const Pack<C>& first, const Pack<C>& second, int i, float scale, float second_scale) {
  if constexpr (sizeof(C) == 2) {
    return __byte_perm(neighbours<T>(first, i), neighbours<T>(second, i), i % 2 == 0 ? 0x5410 : 0x7632);
  } else {
    return pack2<T>(to_float(first.element[i]) * scale, to_float(second.element[i]) * second_scale);
  }
}

// The left operand of Q K^T, of all warps, in shared memory, filled up with zeros, in the order in which lanes read it
// side by side: of what a lane multiplies with its chunk of a key the first eight elements of row lane / 4, as many of
// the row eight below, then the next of both.
template <class T, class C>
struct Queries {
  static constexpr int chunk = Pack<C>::size, pieces = 2 * chunk / Pack<T>::size;
  const uint4* room;

  __device__ Queries(const DecodeParams<C>& p, const Work& work, uint4* to) : room(to) {
    const int count = tile_rows * round_up(p.key.features, features_at_once) / Pack<T>::size;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += decode_threads) {
      const int lane = i % warp_size, piece = i / warp_size % pieces, four_chunks = i / warp_size / pieces;
      const int first = (4 * four_chunks + lane % 4) * chunk + piece / 2 * Pack<T>::size;
      const Row row(p, work, lane / 4 + piece % 2 * 8);
      Pack<T> q;
#pragma unroll
      for (int e = 0; e < Pack<T>::size; ++e) {
        const bool inside = row.exists && first + e < p.key.features;
        const T* const from = p.query.template at<T>(work.batch, row.head, row.token, first + e);
        q.element[e] = inside ? *from : from_float<T>(0.0f);
      }
      to[i] = reinterpret_cast<const uint4&>(q);
    }
  }
  // Of the lane's chunk the elements [i, i + 4) of both rows.
  __device__ void load(std::uint32_t (&a)[4], int four_chunks, int i) const {
    const uint4* const from = room + (four_chunks * pieces + i / Pack<T>::size * 2) * warp_size + lane_id();
    const uint4 low = from[0], high = from[warp_size];
    const bool second = i % Pack<T>::size != 0;
    a[0] = second ? low.z : low.x, a[1] = second ? high.z : high.x;
    a[2] = second ? low.w : low.y, a[3] = second ? high.w : high.y;
  }
};

// s = Q K^T of a tile. Lane `key` of eight blocks' keys reads what lanes 4 key ... 4 key + 3 multiply.
template <class T, class C>
__device__ void multiply_keys(const DecodeParams<C>& p, const Queries<T, C>& queries, std::int64_t key_at,
                              Accumulators<tile_keys>& s) {
  constexpr int chunk = Pack<C>::size, chunks = features_at_once / (4 * chunk), blocks = tile_keys / 8;
  std::int64_t at[blocks];
#pragma unroll
  for (int block = 0; block < blocks; ++block) at[block] = __shfl_sync(whole_warp, key_at, 8 * block + lane_id() / 4);
  s.clear();
#pragma unroll 1
  for (int first = 0; first < p.key.features; first += features_at_once) {
    Pack<C> k[chunks][blocks];
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      const int column = first + (4 * c + lane_id() % 4) * chunk;
#pragma unroll
      for (int block = 0; block < blocks; ++block) k[c][block] = load_chunk<true>(p.key, at[block], column);
    }
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
#pragma unroll
      for (int i = 0; i < chunk; i += 4) {
        std::uint32_t q[4];
        queries.load(q, first / (4 * chunk) + c, i);
#pragma unroll
        for (int block = 0; block < blocks; ++block) {
          ptx::multiply_add<T>(s.at[block], q, neighbours<T>(k[c][block], i), neighbours<T>(k[c][block], i + 2));
        }
      }
    }
  }
}

// Products to scores.
template <class C>
__device__ void apply_rules(const DecodeParams<C>& p, const Work& work, const Key& key, const Row (&row)[2],
                            int first_key, Accumulators<tile_keys>& s) {
  if constexpr (sizeof(C) == 1) {
#pragma unroll
    for (int block = 0; block < tile_keys / 8; ++block) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float scale = __shfl_sync(whole_warp, key.key_scale, 8 * block + 2 * (lane_id() % 4) + i);
        s.at[block][i] *= scale, s.at[block][i + 2] *= scale;
      }
    }
  }
  const std::uint32_t missing = __ballot_sync(whole_warp, key.missing);
  s.for_each([&](float& x, int half, int column) {
    x *= p.factor;
    if (p.bound > 0.0f) x = p.bound * tanhf(x);
    if (missing >> column & 1) x = NAN;
    const int position = first_key + column, own = work.diagonal + row[half].token;
    const bool seen = position >= work.lowest && position < work.end && position <= own && position >= own - p.before;
    if (!seen) x = -INFINITY;
  });
}

// output += P V of a tile. Of the output's blocks of eight columns the e-th of a chunk has element e of eight chunks.
template <class T, class C, int Width>
__device__ void add_values(const DecodeParams<C>& p, const Work& work, const Key& key, const Accumulators<tile_keys>& s,
                           Accumulators<Width>& output) {
  constexpr int chunk = Pack<C>::size;
#pragma unroll
  for (int step = 0; step < tile_keys / 16; ++step) {
    std::uint32_t a[4];
    as_left<T>(a, s, step);
    std::int64_t at[4];
    float scale[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int from = 16 * step + 2 * (lane_id() % 4) + i % 2 + i / 2 * 8;
      at[i] = __shfl_sync(whole_warp, key.value_at, from);
      scale[i] = sizeof(C) == 1 ? __shfl_sync(whole_warp, key.value_scale, from) : 1.0f;
    }
#pragma unroll
    for (int first = 0; first < Width / 8; first += chunk) {
      const int column = work.first_column + 8 * first + lane_id() / 4 * chunk;
      Pack<C> v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = load_chunk<true>(p.value, at[i], column);
#pragma unroll
      for (int e = 0; e < chunk; ++e) {
        ptx::multiply_add<T>(output.at[first + e], a, beside<T>(v[0], v[1], e, scale[0], scale[1]),
                             beside<T>(v[2], v[3], e, scale[2], scale[3]));
      }
    }
  }
}

// Where four columns of a row are among a warp's outputs in shared memory. They change places so that the lanes that
// write at once, with every other chunk of two rows, meet no bank twice.
template <class C, int Width>
__device__ inline int four_columns(int row, int four) {
  return row * Width + (four ^ (four / (Pack<C>::size / 2) % 4 + row % 2 * 4)) * 4;
}

// Leaves a warp's state where the merge finds it.
template <class C, int Width>
__device__ void store_state(OnlineSoftmax<false>& softmax, const Accumulators<Width>& output, Warps<tile_rows>& warps,
                            float* outputs) {
  constexpr int chunk = Pack<C>::size;
  softmax.finish();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane_id() / 4 + 8 * half;
    if (lane_id() % 4 == 0) {
      warps.maximum[warp_id()][row] = softmax.maximum[half];
      warps.sum[warp_id()][row] = softmax.sum[half];
    }
#pragma unroll
    for (int block = 0; block < Width / 8; block += 4) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = block / chunk * 8 * chunk + (2 * (lane_id() % 4) + i) * chunk + block % chunk;
        const int element = 2 * half + i;
        const float* const to = outputs + warp_id() * tile_rows * Width + four_columns<C, Width>(row, column / 4);
        ptx::store_four(ptx::shared_address(to), {output.at[block][element], output.at[block + 1][element],
                                                  output.at[block + 2][element], output.at[block + 3][element]});
      }
    }
  }
}

template <class T, class C, int Width>
__global__ __launch_bounds__(decode_threads,
                             2) void attention_decode_kernel(const __grid_constant__ DecodeParams<C> p) {
  extern __shared__ uint4 shared[];  // queries; in the end the warps' outputs
  float* const outputs = reinterpret_cast<float*>(shared);
  __shared__ Warps<tile_rows> warps;
  const Work work(p, tile_rows);
  const Row row[2] = {Row(p, work, lane_id() / 4), Row(p, work, lane_id() / 4 + 8)};
  const Queries<T, C> queries(p, work, shared);
  __syncthreads();
  OnlineSoftmax<false> softmax{log2_e};
  Accumulators<Width> output;
  output.clear();
  for (int tile = work.first_tile + warp_id(); tile < work.end_tile; tile += decode_warps) {
    const Key key(p, work, tile * tile_keys + lane_id());
    Accumulators<tile_keys> s;
    multiply_keys(p, queries, key.key_at, s);
    apply_rules(p, work, key, row, tile * tile_keys, s);
    softmax.update(s, output);
    add_values<T>(p, work, key, s, output);
  }
  __syncthreads();
  store_state<C>(softmax, output, warps, outputs);
  __syncthreads();
  if (threadIdx.x < tile_rows) finish_row(p, work, static_cast<int>(threadIdx.x), warps);
  __syncthreads();
  store_result(p, work, warps, outputs,
               [](int row, int column) { return four_columns<C, Width>(row, column / 4) + column % 4; });
}

// Whether this file's kernels take a call. Others are exact in fp32, or have rows that lie askew.
bool uses_tiles(const AttentionDecodeArgs& args, const Place& place) {
  const DType query = args.query.dtype, cache = args.key_cache.dtype;
  const bool multiplied = query == DType::float16 || (query == DType::bfloat16 && place.capability >= 80);
  return multiplied && (cache == query || cache == DType::int8) && has_packed_rows(args.key_cache) &&
         has_packed_rows(args.value_cache);
}

// Of the output, that a block computes. Eight lanes have 64 columns of 16 bits, 128 of int8.
int tile_width(const AttentionDecodeArgs& args) {
  return args.key_cache.dtype != DType::int8 && args.value_cache.size[3] <= 64 ? 64 : tile_columns;
}

DecodeDivision divide(const AttentionDecodeArgs& args, const Place& place) {
  if (!uses_tiles(args, place)) return divide_plain(args, place);
  return divide(args, place, tile_rows, tile_width(args));
}

template <class T, class C, int Width>
void launch_tiles(const AttentionDecodeArgs& args, const DecodeDivision& d, const Place& place) {
  const std::int64_t queries = tile_rows * std::int64_t(sizeof(T)) * round_up(args.query.size[3], features_at_once);
  const std::int64_t outputs = decode_warps * tile_rows * Width * std::int64_t(sizeof(float));
  const Launch shape{d.blocks, decode_threads, std::max(queries, outputs)};
  launch(&attention_decode_kernel<T, C, Width>, shape, place, params_of<C>(args, d));
}

void run_tiles(const AttentionDecodeArgs& args, const DecodeDivision& d, const Place& place) {
  with_half_dtype(args.query.dtype, [&]<class T>(T) {
    if (args.key_cache.dtype == DType::int8) return launch_tiles<T, std::int8_t, tile_columns>(args, d, place);
    if (d.width == 64) return launch_tiles<T, T, 64>(args, d, place);
    launch_tiles<T, T, tile_columns>(args, d, place);
  });
}

}  // namespace

std::int64_t workspace_bytes(const AttentionDecodeArgs& args, const Place& place) {
  Workspace workspace;
  Splits::in(workspace, divide(args, place).splits, as_attention(args));
  return workspace.used();
}

void run(const AttentionDecodeArgs& args, const Place& place) {
  if (args.new_key.data) append(args, place);
  const DecodeDivision d = divide(args, place);
  if (uses_tiles(args, place)) {
    run_tiles(args, d, place);
  } else {
    run_plain(args, d, place);
  }
  if (d.splits == 1) return;
  Workspace workspace(args.workspace);
  merge_splits(as_attention(args), Splits::in(workspace, d.splits, as_attention(args)), place);
}

}  // namespace bigmodel::cuda
