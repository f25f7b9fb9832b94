// attention in fp16, bf16 and TF32: tensor cores, scores and probabilities in registers (Dao, "FlashAttention-2",
// 2023). A block takes a tile of queries, each warp sixteen of them, and walks over tiles of keys.
#include <algorithm>
#include <cmath>

#include "cuda/attention_forward.cuh"
#include "cuda/attention_scores.cuh"
#include "cuda/dropout.cuh"
#include "cuda/launch.cuh"
#include "cuda/online_softmax.cuh"
#include "cuda/pack_rows.h"
#include "cuda/pipeline.cuh"

namespace bigmodel::cuda {
namespace {

template <class T>
struct Params {
  AttentionTensors<T> in;
  View<T> output;
  bool packed_output;
  int value_dim;  // of the output: that of `in` is filled up to whole chunks
  float* lse;
  // A unit of rows is the queries of one head; or, where they are few, of all heads that share keys.
  bool folded;
  int units, row_tiles;
  bool last_rows_first;  // causal: they have the most keys
  int stages;
  Splits splits;
};

constexpr int warp_rows = 16, fewest_warps = 4, most_warps = 8;

// Keys of one tile, so that two or three tiles fit beside the queries.
template <class T, int Head>
constexpr int tile_keys = (Head > 128 ? 32 : 64) / (sizeof(T) / 2);

// Queries stay in registers where there is room beside the output.
template <int Head, bool Plain>
constexpr bool queries_in_registers = Head <= (Plain ? 128 : 64);

// Large tiles have eight warps, where two such blocks, or one of large heads, fill a multiprocessor's registers; at 64
// features three blocks of four warps do so better.
template <int Head>
constexpr bool has_large_tiles = Head == 32 || Head == 96 || Head == 128;

template <class T, int Head>
std::int64_t shared_bytes(int warps, int stages) {
  return std::int64_t(sizeof(T)) * Head * (warps * warp_rows + stages * tile_keys<T, Head>);
}

// A block's place in the work.
template <class T>
struct Work {
  int batch, kv_head, first_head, first_row, q_len, split;

  __device__ Work(const Params<T>& p, AttentionTensors<T>& in, int rows) {
    int block = static_cast<int>(blockIdx.x);
    split = block % p.splits.count;
    block /= p.splits.count;
    // Tile after tile, so that the keys of one head stay in the cache; but the longest tiles of all heads first.
    const int tile = p.last_rows_first ? p.row_tiles - 1 - block / p.units : block % p.row_tiles;
    const int unit = p.last_rows_first ? block % p.units : block / p.row_tiles;
    const int units_per_batch = p.folded ? in.kv_heads : in.heads, each = p.folded ? in.group : 1;
    batch = unit / units_per_batch;
    first_head = unit % units_per_batch * each;
    kv_head = first_head / in.group;
    first_row = in.enter_tile(in.query_starts, tile, rows, batch, each) * rows;
    q_len = in.q_len;
  }
  __device__ int unit_rows(const Params<T>& p) const { return p.folded ? q_len * p.in.group : q_len; }
  __device__ int head(const Params<T>& p, int row) const { return p.folded ? first_head + row / q_len : first_head; }
  __device__ int query(const Params<T>& p, int row) const { return p.folded ? row % q_len : row; }
};

// Tiles of keys [begin, end) that a block walks over; those in [full_begin, full_end) are seen by all its queries.
struct KeyTiles {
  int begin, end, full_begin, full_end;

  template <class T>
  __device__ KeyTiles(const Params<T>& p, const Band& band, const Work<T>& work, int rows, int keys) {
    const int last_row = min(work.first_row + rows, work.unit_rows(p)) - 1;
    const bool one_head = work.head(p, work.first_row) == work.head(p, last_row);
    const int first = one_head ? work.query(p, work.first_row) : 0;
    const int last = one_head ? work.query(p, last_row) : work.q_len - 1;
    const int first_tile = band.first_key(first) / keys, end_tile = ceil_div(band.end_key(last), keys);
    const int each = ceil_div(max(end_tile - first_tile, 0), p.splits.count);
    begin = first_tile + work.split * each;
    end = min(begin + each, end_tile);
    full_begin = ceil_div(band.first_key(last), keys);
    full_end = band.end_key(first) / keys;
  }
  __device__ bool full(int tile) const { return tile >= full_begin && tile < full_end; }
};

// What the rules know of a lane's two queries, of the sixteen rows from first_row on.
template <class T>
__device__ void find_query_rows(const Params<T>& p, const AttentionTensors<T>& in, const Work<T>& work, int first_row,
                                QueryRow (&rows)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = min(first_row + lane_id() / 4 + 8 * half, work.unit_rows(p) - 1);
    rows[half] = QueryRow(in, work.batch, work.head(p, r), work.query(p, r));
  }
}

// One split's rows, in fp32.
template <class T, int Head>
__device__ void store_split(const Params<T>& p, const AttentionTensors<T>& in, const Work<T>& work, int first_row,
                            Accumulators<Head>& output) {
  const int lane = lane_id();
  output.for_each_pair([&](float first, float second, int half, int column) {
    const int row = first_row + lane / 4 + 8 * half;
    if (row >= work.unit_rows(p) || column >= p.value_dim) return;
    const std::int64_t whole_row = in.row_of(work.batch, work.head(p, row), work.query(p, row));
    float* const to = p.splits.output + (work.split * p.splits.rows + whole_row) * p.value_dim + column;
    if (p.value_dim % 2 == 0) {
      *reinterpret_cast<float2*>(to) = {first, second};
    } else {
      to[0] = first;
      if (column + 1 < p.value_dim) to[1] = second;
    }
  });
}

// Starts copying a block's queries: sixteen rows for each warp.
template <class T, int Head>
__device__ void copy_queries(const Params<T>& p, const View<const T>& query, const Work<T>& work, int warps, T* to) {
  for (int warp = 0; warp < warps; ++warp) {
    const SharedTile<T, warp_rows, Head> part(to + warp * warp_rows * Head);
    copy_tile(part, p.in.head_dim, query.data, [&](int row) -> const T* {
      const int r = work.first_row + warp * warp_rows + row;
      return r < work.unit_rows(p) ? query.at(work.batch, work.head(p, r), work.query(p, r)) : nullptr;
    });
  }
}

// Fetches the pipeline's items: keys and values of every tile, in turn.
template <class T, int Head>
struct FetchKeysAndValues {
  using Tile = SharedTile<T, tile_keys<T, Head>, Head>;

  const AttentionTensors<T>& in;
  const T *keys, *values;  // of the block's head
  T* ring;
  int first_tile, items;

  __device__ FetchKeysAndValues(const AttentionTensors<T>& in, const Work<T>& work, const KeyTiles& tiles, T* ring)
      : in(in),
        keys(in.key.at(work.batch, work.kv_head)),
        values(in.value.at(work.batch, work.kv_head)),
        ring(ring),
        first_tile(tiles.begin),
        items(2 * max(tiles.end - tiles.begin, 0)) {}
  __device__ void operator()(int item, int slot) const {
    if (item >= items) return;
    const bool keys_turn = item % 2 == 0;
    const int first = (first_tile + item / 2) * Tile::rows, rows = in.kv_len - first;
    const Tile to(ring + slot * Tile::elements);
    const T* const from = keys_turn ? keys : values;
    const std::int64_t stride = keys_turn ? in.key.row : in.value.row;
    const int width = keys_turn ? in.head_dim : in.value_dim;
    if constexpr (has_large_tiles<Head>) {
      copy_rows_by_groups<fewest_warps * warp_size>(to, from, first, stride, rows, width);
    } else {
      copy_rows<fewest_warps * warp_size>(static_cast<int>(threadIdx.x), to, from, first, stride, rows, width);
    }
  }
};

// The left operand of Q K^T: from registers, which take it once, or from shared memory each time.
template <class T, int Head, bool InRegisters>
struct QueryOperand {
  SharedTile<T, warp_rows, Head> queries;
  std::uint32_t q[InRegisters ? Head / step_depth<T> : 1][4];

  __device__ void take() {
    if constexpr (InRegisters) {
#pragma unroll
      for (int step = 0; step < Head / step_depth<T>; ++step) load_left(q[step], queries, 0, step_depth<T> * step);
    }
  }
  __device__ void operator()(std::uint32_t (&a)[4], int step) const {
    if constexpr (InRegisters) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = q[step][i];
    } else {
      load_left(a, queries, 0, step_depth<T> * step);
    }
  }
};

// A warp's rows are complete: writes their log-sum-exps and their output, or this split's part of both.
template <class T, int Head, bool Plain>
__device__ void store_result(const Params<T>& p, const AttentionTensors<T>& in, const Work<T>& work,
                             const QueryRow (&row)[2], int first_row, OnlineSoftmax<Plain>& softmax,
                             Accumulators<Head>& output, T* room) {
  softmax.finish();
  const bool whole = p.splits.count == 1;
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float maximum = Plain ? softmax.maximum[half] * in.rules.scale : softmax.maximum[half];
    const float sink = whole && in.sinks ? in.sinks[row[half].head * in.sink_stride] : -INFINITY;
    const RowEnd end(maximum, softmax.sum[half], sink);
    factor[half] = end.factor;
    const bool writes = lane_id() % 4 == 0 && first_row + lane_id() / 4 + 8 * half < work.unit_rows(p);
    const std::int64_t whole_row = in.row_of(work.batch, row[half].head, row[half].query);
    if (writes) (whole ? p.lse : p.splits.lse + work.split * p.splits.rows)[whole_row] = end.lse;
  }
  output.for_each([&](float& x, int half, int) { x *= factor[half]; });
  if (!whole) return store_split(p, in, work, first_row, output);
  ptx::wait_for_copies<0>();  // of queries, where there were no keys
  __syncthreads();
  store_rows(output, room, p.value_dim, p.packed_output, [&](int i) -> T* {
    const int r = first_row + i;
    if (r >= work.unit_rows(p)) return nullptr;
    return p.output.at(work.batch, work.head(p, r), in.first_query + work.query(p, r));
  });
}

template <class T, int Head, bool Plain>
__global__ __launch_bounds__(most_warps* warp_size, 1) void attention_kernel(const __grid_constant__ Params<T> p) {
  constexpr int keys = tile_keys<T, Head>;
  using Tile = SharedTile<T, keys, Head>;
  extern __shared__ __align__(128) unsigned char shared[];
  AttentionTensors<T> in = p.in;
  const int warps = static_cast<int>(blockDim.x) / warp_size, rows = warps * warp_rows;
  const Work<T> work(p, in, rows);
  if (work.first_row >= work.unit_rows(p)) return;
  const KeyTiles tiles(p, in.band, work, rows, keys);
  // Queries [rows, Head], each warp's on their own; then the ring of tiles of keys and values.
  T *const queries = reinterpret_cast<T*>(shared), *const my_queries = queries + warp_id() * warp_rows * Head;
  T* const ring = queries + rows * Head;
  copy_queries<T, Head>(p, in.query, work, warps, queries);
  const FetchKeysAndValues<T, Head> fetch(in, work, tiles, ring);
  Pipeline pipeline(p.stages, fetch);

  const int first_row = work.first_row + warp_id() * warp_rows;
  QueryRow row[2];
  find_query_rows(p, in, work, first_row, row);
  const HeadDropout dropout(in.rules.dropout, work.batch);
  OnlineSoftmax<Plain> softmax{Plain ? in.rules.scale * log2_e : log2_e};
  Accumulators<Head> output;
  output.clear();
  QueryOperand<T, Head, queries_in_registers<Head, Plain>> query{SharedTile<T, warp_rows, Head>(my_queries)};
  pipeline.wait();
  query.take();

  for (int tile = tiles.begin; tile < tiles.end; ++tile) {
    const int first_key = tile * keys;
    const auto query_of = [&](int half, int) -> const QueryRow& { return row[half]; };
    const auto key_of = [&](int, int column) { return first_key + column; };
    Accumulators<keys> s;
    s.clear();
    const Tile key_tile(ring + pipeline.step(fetch) * Tile::elements);
    multiply<T, Head>(s, key_tile, query);  // S = Q K^T
    // Of agreed() the compiler cannot know that it gives the same each time.
    if constexpr (!keeps_query_rows<Head, Plain>) find_query_rows(p, in, work, agreed(first_row), row);
    if constexpr (!Plain) apply_rules<T>(in.rules, in.kv_len, s, query_of, key_of);
    if (!tiles.full(tile)) remove_outside(in.band, s, query_of, key_of);
    softmax.update(s, output);
    if constexpr (!Plain) {
      if (in.rules.dropout.seed) drop(dropout, row, first_key, s);
    }
    const Tile value_tile(ring + pipeline.step(fetch) * Tile::elements);
    multiply_transposed<T>(output, s, value_tile);  // O += P V
  }
  // Where it belongs is looked up again: over the loop it would take registers.
  AttentionTensors<T> out = p.in;
  const Work<T> done(p, out, rows);
  if constexpr (!keeps_query_rows<Head, Plain>) find_query_rows(p, out, done, agreed(first_row), row);
  store_result<T, Head, Plain>(p, out, done, row, first_row, softmax, output, my_queries);
}

// How one call is divided; decided by shapes and the device alone.
struct Division {
  bool folded;
  int units, row_tiles, warps, stages, splits;
  std::int64_t shared;
};

template <class T, int Head>
Division divide(const AttentionForwardArgs& args, const Place& place) {
  const TensorView &query = args.inputs.query, &key = args.inputs.key;
  const auto batch = static_cast<int>(query.size[0]), heads = static_cast<int>(query.size[1]),
             kv_heads = static_cast<int>(key.size[1]);
  const Starts query_starts(args.inputs.query_starts, query.size[2]), key_starts(args.inputs.key_starts, key.size[2]);
  const std::int64_t q_len = query_starts.usual_length(query.size[2]), kv_len = key_starts.usual_length(key.size[2]);
  Division d;
  d.folded = heads > kv_heads && q_len <= fewest_warps * warp_rows / 2;
  const int each = d.folded ? heads / kv_heads : 1;
  d.units = batch * (d.folded ? kv_heads : heads);
  // Larger tiles read the keys less often, but only where they are full and leave no part of the device idle.
  const auto fits = [&](int warps, int stages) { return shared_bytes<T, Head>(warps, stages) <= place.shared_memory; };
  const auto tiles_of = [&](int warps) { return query_starts.tiles(each * query.size[2], warps * warp_rows); };
  const bool large = has_large_tiles<Head> && each * q_len > fewest_warps * warp_rows &&
                     d.units * tiles_of(most_warps) >= place.multiprocessors;
  d.warps = large && fits(most_warps, 2) ? most_warps : fewest_warps;
  d.stages = place.capability >= 80 && fits(d.warps, 3) ? 3 : 2;
  d.shared = shared_bytes<T, Head>(d.warps, d.stages);
  d.row_tiles = static_cast<int>(tiles_of(d.warps));
  const auto key_tiles = static_cast<int>(ceil_div(kv_len, tile_keys<T, Head>));
  d.splits = choose_splits(std::int64_t(d.units) * d.row_tiles, key_tiles, place);
  return d;
}

template <class T, int Head>
void run_tiles(const AttentionForwardArgs& args, const Place& place) {
  check_products<T>(place);
  const Division d = divide<T, Head>(args, place);
  Workspace workspace(args.workspace);
  const Params<T> p{.in = AttentionTensors<T>(packed_inputs(args.inputs, workspace, &place)),
                    .output = View<T>(args.output),
                    .packed_output = has_packed_rows(args.output),
                    .value_dim = static_cast<int>(args.output.size[3]),
                    .lse = static_cast<float*>(args.lse.data),
                    .folded = d.folded,
                    .units = d.units,
                    .row_tiles = d.row_tiles,
                    .last_rows_first = args.inputs.options.causal != Causal::none,
                    .stages = d.stages,
                    .splits = Splits::in(workspace, d.splits, args)};
  const Launch shape{std::int64_t(d.units) * d.row_tiles * d.splits, d.warps * warp_size, d.shared};
  if (p.in.rules.plain()) {
    launch(&attention_kernel<T, Head, true>, shape, place, p);
  } else {
    launch(&attention_kernel<T, Head, false>, shape, place, p);
  }
  if (d.splits > 1) merge_splits(args, p.splits, place);
}

// Calls body with the element type and the head size of a call that the kernels take.
template <class Body>
void with_kernel(const AttentionInputs& inputs, Body body) {
  with_tile_type(inputs.query.dtype, [&]<class T>(T) {
    with_head_size<T>(head_size(inputs),
                      [&]<int head>(std::integral_constant<int, head>) { body.template operator()<T, head>(); });
  });
}

}  // namespace

int choose_splits(std::int64_t blocks, int key_tiles, const Place& place) {
  constexpr int most = 64;
  const std::int64_t at_once = place.multiprocessors;
  if (5 * blocks >= 4 * at_once || key_tiles <= 4) return 1;
  const auto efficiency = [&](int splits) {
    const double waves = double(blocks * splits) / double(at_once);
    return waves / std::ceil(waves);
  };
  double best = 0;
  const int limit = std::min(most, key_tiles / 2);
  for (int splits = 1; splits <= limit; ++splits) best = std::max(best, efficiency(splits));
  for (int splits = 1; splits <= limit; ++splits) {
    if (efficiency(splits) >= 0.85 * best) return splits;
  }
  return 1;
}

std::int64_t workspace_bytes(const AttentionForwardArgs& args, const Place& place) {
  if (!uses_tiles(args.inputs, place)) return 0;
  Workspace workspace;
  packed_inputs(args.inputs, workspace, nullptr);
  with_kernel(args.inputs,
              [&]<class T, int head>() { Splits::in(workspace, divide<T, head>(args, place).splits, args); });
  return workspace.used();
}

void run(const AttentionForwardArgs& args, const Place& place) {
  if (!uses_tiles(args.inputs, place)) return run_plain(args, place);
  with_kernel(args.inputs, [&]<class T, int head>() { run_tiles<T, head>(args, place); });
}

}  // namespace bigmodel::cuda
