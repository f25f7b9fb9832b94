// dQ on tensor cores: a block takes a tile of queries, each warp sixteen of them, and walks over tiles of keys.
#include "cuda/attention_gradient.cuh"
#include "cuda/launch.cuh"

namespace bigmodel::cuda {
namespace {

template <class T, int Head, bool Plain>
__global__ __launch_bounds__(gradient_warps* warp_size,
                             2) void grad_query_kernel(const __grid_constant__ GradientParams<T> p) {
  constexpr int keys = passing_rows<T, Head, Plain>;
  using Tile = SharedTile<T, keys, Head>;
  using Own = SharedTile<T, 16, Head>;
  extern __shared__ __align__(128) unsigned char shared[];
  AttentionTensors<T> in = p.in;
  const int warps = static_cast<int>(blockDim.x) / warp_size, rows = 16 * warps;
  const int tile_of_rows = static_cast<int>(blockIdx.x) % p.row_tiles,
            unit = static_cast<int>(blockIdx.x) / p.row_tiles;
  const int h = unit % in.heads, kv_head = h / in.group;
  int b = unit / in.heads;
  // The last rows have the most keys where it is causal.
  const int block_row = in.enter_tile(in.query_starts, p.row_tiles - 1 - tile_of_rows, rows, b) * rows;
  if (block_row >= in.q_len) return;
  const int last_row = min(block_row + rows, in.q_len) - 1;
  T* const memory = reinterpret_cast<T*>(shared);
  T* const my_rows = memory + warp_id() * Own::elements;
  const Own query(my_rows), grad_output(my_rows + rows * Head);
  T* const ring = memory + 2 * rows * Head;

  copy_own_rows<T, Head>(memory, in.query, b, h, block_row, in.q_len, in.head_dim);
  copy_own_rows<T, Head>(memory + rows * Head, p.grad_output.from_row(in.first_query), b, h, block_row, in.q_len,
                         in.value_dim);

  const Band& band = in.band;
  const int begin = band.first_key(block_row) / keys, end = ceil_div(band.end_key(last_row), keys);
  const int full_begin = ceil_div(band.first_key(last_row), keys), full_end = band.end_key(block_row) / keys;
  const auto fetch = [&](int item, int slot) {
    const int first = (begin + item) * keys;
    if (begin + item >= end) return;
    T* const to = ring + 2 * slot * Tile::elements;
    copy_passing<Tile>(to, in.key, b, kv_head, first, in.kv_len, in.head_dim);
    copy_passing<Tile>(to + Tile::elements, in.value, b, kv_head, first, in.kv_len, in.value_dim);
  };
  Pipeline pipeline(gradient_stages, fetch);

  const int first_row = block_row + 16 * warp_id();
  QueryRow row[2];
  const auto find_rows = [&](int first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) row[half] = QueryRow(in, b, h, first + lane_id() / 4 + 8 * half);
  };
  find_rows(first_row);
  RowTerms terms[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = first_row + lane_id() / 4 + 8 * half;
    terms[half] = r < in.q_len ? p.terms.at(in, b, h)[r] : RowTerms{INFINITY, 0.0f};
  }
  Accumulators<Head> result;
  result.clear();

  for (int tile = begin; tile < end; ++tile) {
    const int slot = pipeline.step(fetch), first_key = tile * keys;
    const Tile key(ring + 2 * slot * Tile::elements), value(ring + (2 * slot + 1) * Tile::elements);
    Accumulators<keys> s, grad, factors, slope;
    s.clear();
    if constexpr (!Plain) clear_terms(factors, slope);
    multiply<T, Head>(s, key,
                      [&](std::uint32_t (&a)[4], int step) { load_left(a, query, 0, step_depth<T> * step); });  // Q K^T
    // Of agreed() the compiler cannot know that it gives the same each time.
    if constexpr (!keeps_query_rows<Head, Plain>) find_rows(agreed(first_row));
    make_probabilities<T, Plain>(
        in, tile >= full_begin && tile < full_end, s, slope,
        [&](int half, int) -> const QueryRow& { return row[half]; },
        [&](int, int column) { return first_key + column; }, [&](int half, int) { return terms[half].lse; });
    grad.clear();
    multiply<T, Head>(grad, value,  // dO V^T
                      [&](std::uint32_t (&a)[4], int step) { load_left(a, grad_output, 0, step_depth<T> * step); });
    if constexpr (!Plain) {
      if (in.rules.dropout.seed) {
        const HeadDropout dropout(in.rules.dropout, b);  // the rounds' keys would take registers over the loop
        for_each_dropout(dropout, row, first_key, factors, [](float& x, float factor) { x = factor; });
      }
    }
    make_score_gradients<T, Plain>(in, s, grad, factors, slope, [&](int half, int) { return terms[half].delta; });
    multiply_transposed<T>(result, grad, key);  // dQ += dS K
  }

  ptx::wait_for_copies<0>();
  __syncthreads();
  result.for_each([&](float& x, int, int) { x *= in.rules.scale; });
  store_rows(result, my_rows, p.head_dim, p.packed_query, [&](int i) -> T* {
    return first_row + i < in.q_len ? p.grad_query.at(b, h, in.first_query + first_row + i) : nullptr;
  });
}

template <class T, int Head, bool Plain>
void launch_kernel(GradientParams<T> p, int warps, const Place& place) {
  p.row_tiles = static_cast<int>(p.in.query_starts.tiles(p.in.q_len, 16 * warps));
  launch(&grad_query_kernel<T, Head, Plain>,
         {std::int64_t(p.in.batch) * p.in.heads * p.row_tiles, warps * warp_size,
          gradient_shared_bytes<T, Head, Plain>(warps)},
         place, p);
}

}  // namespace

template <class T>
void run_grad_query(const GradientParams<T>& p, const Place& place) {
  with_gradient_kernel(p, place, [&]<int head, bool plain>(GradientKernel<head, plain>, int warps) {
    launch_kernel<T, head, plain>(p, warps, place);
  });
}

template void run_grad_query<half>(const GradientParams<half>&, const Place&);
template void run_grad_query<bf16>(const GradientParams<bf16>&, const Place&);
template void run_grad_query<tf32>(const GradientParams<tf32>&, const Place&);

}  // namespace bigmodel::cuda
