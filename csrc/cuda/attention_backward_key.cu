// dK and dV on tensor cores: a block takes a tile of keys, each warp sixteen of them, and walks over tiles of queries
// of all heads that read these keys. Scores are computed transposed, keys as rows, so that probabilities and their
// gradients are left operands as they are.
#include "cuda/attention_gradient.cuh"
#include "cuda/launch.cuh"

namespace bigmodel::cuda {
namespace {

// A block's place in the work: its keys (none where first_key is past the last), and the tiles of queries that pass by,
// head after head; of those that see any of the keys, the ones between full_first and full_end see all.
struct KeyWork {
  int b, kv_head, first_key, first_head, queries, begin, tiles, full_first, full_end;

  template <class T>
  __device__ KeyWork(const GradientParams<T>& p, AttentionTensors<T>& in, int rows, int queries) : queries(queries) {
    const int unit = static_cast<int>(blockIdx.x) / p.row_tiles;
    b = unit / in.kv_heads;
    kv_head = unit % in.kv_heads;
    first_head = kv_head * in.group;
    first_key = in.enter_tile(in.key_starts, static_cast<int>(blockIdx.x) % p.row_tiles, rows, b) * rows;
    const Band& band = in.band;
    const int last_key = min(first_key + rows, in.kv_len) - 1;
    const int first_query = max(band.first_query(first_key), 0), end_query = min(band.end_query(last_key), in.q_len);
    begin = first_query / queries;
    tiles = max(ceil_div(end_query, queries) - begin, 0);
    full_first = band.first_query(last_key);
    full_end = band.end_query(first_key);
  }
  __device__ int items(int group) const { return tiles * group; }
  __device__ bool full(int query) const { return query >= full_first && query + queries <= full_end; }
};

// One item after the other, without a division for each.
struct Walk {
  int head, tile;

  __device__ explicit Walk(const KeyWork& work) : head(work.first_head), tile(0) {}
  __device__ int query(const KeyWork& work) const { return (work.begin + tile) * work.queries; }
  __device__ void advance(const KeyWork& work) {
    if (++tile < work.tiles) return;
    tile = 0;
    ++head;
  }
};

// The rules' view of a query that is a column.
template <class T>
__device__ QueryRow column_query(const AttentionTensors<T>& in, QueryRow head_row, int query) {
  head_row.query = min(query, in.q_len - 1);
  head_row.diagonal = head_row.query + in.band.offset;
  head_row.mask += head_row.query * in.rules.mask_query;
  return head_row;
}

// A warp's sixteen rows of dK or dV, if it is wanted.
template <class T, int Head>
__device__ void store_gradient(Accumulators<Head>& sums, float scale, const View<T>& gradient,
                               const AttentionTensors<T>& in, const KeyWork& work, int start, int width, bool packed,
                               T* room) {
  if (!gradient.data) return;
  const int first_key = work.first_key + 16 * warp_id();
  sums.for_each([&](float& x, int, int) { x *= scale; });
  store_rows(sums, room, width, packed, [&](int i) -> T* {
    return first_key + i < in.kv_len ? gradient.at(work.b, work.kv_head, start + first_key + i) : nullptr;
  });
}

// Of small heads three blocks fill a multiprocessor's registers. On sm_75 the sums of the largest ones leave registers
// for fewer queries at a time.
template <class T, int Head, bool Plain, bool Keys, bool Values>
__global__ __launch_bounds__(gradient_warps* warp_size,
                             Head == 32 && Plain && !ptx::is_sm_75
                                 ? 3
                                 : 1) void grad_key_kernel(const __grid_constant__ GradientParams<T> p) {
  constexpr int queries = ptx::is_sm_75 && Head == 128 ? 16 : passing_rows<T, Head, Plain>;
  using Tile = SharedTile<T, queries, Head>;
  using Own = SharedTile<T, 16, Head>;
  extern __shared__ __align__(128) unsigned char shared[];
  AttentionTensors<T> in = p.in;
  const int rows = 16 * (static_cast<int>(blockDim.x) / warp_size);
  const KeyWork work(p, in, rows, queries);
  if (work.first_key >= in.kv_len) return;
  const View<const T> grad_outputs = p.grad_output.from_row(in.first_query);
  T* const memory = reinterpret_cast<T*>(shared);
  T* const my_rows = memory + warp_id() * Own::elements;
  const Own key(my_rows), value(my_rows + rows * Head);
  T* const ring = memory + 2 * rows * Head;
  copy_own_rows<T, Head>(memory, in.key, work.b, work.kv_head, work.first_key, in.kv_len, in.head_dim);
  copy_own_rows<T, Head>(memory + rows * Head, in.value, work.b, work.kv_head, work.first_key, in.kv_len, in.value_dim);
  Walk ahead(work);
  const auto fetch = [&](int item, int slot) {
    if (item >= work.items(in.group)) return;
    const int h = ahead.head, first = ahead.query(work);
    ahead.advance(work);
    T* const to = ring + 2 * slot * Tile::elements;
    copy_passing<Tile>(to, in.query, work.b, h, first, in.q_len, in.head_dim);
    copy_passing<Tile>(to + Tile::elements, grad_outputs, work.b, h, first, in.q_len, in.value_dim);
  };
  Pipeline pipeline(gradient_stages, fetch);
  const int first_key = work.first_key + 16 * warp_id();
  Accumulators<Keys ? Head : 8> grad_key;
  Accumulators<Values ? Head : 8> grad_value;
  grad_key.clear();
  grad_value.clear();

  Walk walk(work);
  for (int item = 0; item < work.items(in.group); ++item, walk.advance(work)) {
    const int slot = pipeline.step(fetch), h = walk.head, first_query = walk.query(work);
    const Tile query(ring + 2 * slot * Tile::elements), grad_output(ring + (2 * slot + 1) * Tile::elements);
    // Of two neighbouring queries at a time: {lse, delta, lse, delta}.
    const float4* const terms = reinterpret_cast<const float4*>(p.terms.at(in, work.b, h) + first_query);
    const QueryRow head_row(in, work.b, h, 0);
    Accumulators<queries> s, grad, factors, slope;
    s.clear();
    if constexpr (!Plain) clear_terms(factors, slope);
    multiply<T, Head>(s, query,
                      [&](std::uint32_t (&a)[4], int step) { load_left(a, key, 0, step_depth<T> * step); });  // K Q^T
    make_probabilities<T, Plain>(
        in, work.full(first_query), s, slope,
        [&](int, int column) { return column_query(in, head_row, first_query + column); },
        [&](int half, int) { return first_key + lane_id() / 4 + 8 * half; },
        [&](int, int column) { return column % 2 ? terms[unsigned(column) / 2].z : terms[unsigned(column) / 2].x; });
    if constexpr (Keys) {
      grad.clear();
      multiply<T, Head>(grad, grad_output,  // V dO^T
                        [&](std::uint32_t (&a)[4], int step) { load_left(a, value, 0, step_depth<T> * step); });
    }
    if constexpr (!Plain) {
      if (in.rules.dropout.seed) {
        const HeadDropout dropout(in.rules.dropout, work.b);  // the rounds' keys would take registers over the loop
        for_each_dropout_transposed(dropout, h, first_query, first_key, factors,
                                    [](float& x, float factor) { x = factor; });
      }
    }
    make_score_gradients<T, Plain>(in, s, grad, factors, slope, [&](int, int column) {
      return column % 2 ? terms[unsigned(column) / 2].w : terms[unsigned(column) / 2].y;
    });
    if constexpr (Values) multiply_transposed<T>(grad_value, s, grad_output);  // dV += P^T dO
    if constexpr (Keys) multiply_transposed<T>(grad_key, grad, query);         // dK += dS^T Q
  }

  ptx::wait_for_copies<0>();
  __syncthreads();
  // Where the sequence starts is read again: over the loop it would take a register.
  const int start = in.key_starts.data ? in.key_starts[work.b] : 0;
  if constexpr (Keys) {
    store_gradient(grad_key, in.rules.scale, p.grad_key, in, work, start, p.head_dim, p.packed_key, my_rows);
  }
  if constexpr (Values) {
    store_gradient(grad_value, 1.0f, p.grad_value, in, work, start, p.value_dim, p.packed_value, my_rows);
  }
}

template <class T, int Head, bool Plain>
void launch_kernel(GradientParams<T> p, int warps, const Place& place) {
  p.row_tiles = static_cast<int>(p.in.key_starts.tiles(p.in.kv_len, 16 * warps));
  const Launch shape{std::int64_t(p.in.batch) * p.in.kv_heads * p.row_tiles, warps * warp_size,
                     gradient_shared_bytes<T, Head, Plain>(warps)};
  if constexpr (Head <= 128) {
    launch(&grad_key_kernel<T, Head, Plain, true, true>, shape, place, p);
  } else {  // the sums of both do not fit into registers: each has a pass of its own
    if (p.grad_key.data) launch(&grad_key_kernel<T, Head, Plain, true, false>, shape, place, p);
    if (p.grad_value.data) launch(&grad_key_kernel<T, Head, Plain, false, true>, shape, place, p);
  }
}

}  // namespace

template <class T>
void run_grad_key(const GradientParams<T>& p, const Place& place) {
  with_gradient_kernel(p, place, [&]<int head, bool plain>(GradientKernel<head, plain>, int warps) {
    launch_kernel<T, head, plain>(p, warps, place);
  });
}

template void run_grad_key<half>(const GradientParams<half>&, const Place&);
template void run_grad_key<bf16>(const GradientParams<bf16>&, const Place&);
template void run_grad_key<tf32>(const GradientParams<tf32>&, const Place&);

}  // namespace bigmodel::cuda
