// dK and dV on tensor cores: a block takes a tile of keys, each warp sixteen of them, and walks over tiles of queries
// of all heads that read these keys. Scores are computed transposed, keys as rows, so that probabilities and their
// gradients are left operands as they are.
#include "cuda/attention_gradient.cuh"
#include "cuda/launch.cuh"

namespace bigmodel::cuda {
namespace {

template <class T, int Head, bool Plain, bool Keys, bool Values>
__global__ __launch_bounds__(gradient_warps* warp_size) void grad_key_kernel(
    const __grid_constant__ GradientParams<T> p) {
  constexpr int queries = passing_rows<Head>;
  using Tile = SharedTile<T, queries, Head>;
  using Own = SharedTile<T, 16, Head>;
  extern __shared__ __align__(128) unsigned char shared[];
  const AttentionTensors<T>& in = p.in;
  const int warps = static_cast<int>(blockDim.x) / warp_size, rows = 16 * warps;
  const int block_key = static_cast<int>(blockIdx.x) % p.row_tiles * rows,
            unit = static_cast<int>(blockIdx.x) / p.row_tiles;
  const int b = unit / in.kv_heads, kv_head = unit % in.kv_heads;
  T* const memory = reinterpret_cast<T*>(shared);
  T* const my_rows = memory + warp_id() * Own::elements;
  const Own key(my_rows), value(my_rows + rows * Head);
  T* const ring = memory + 2 * rows * Head;

  const auto copy_own = [&](T* to, const View<const T>& from, int width) {
    for (int warp = 0; warp < warps; ++warp) {
      copy_tile(Own(to + warp * Own::elements), width, in.query.data, [&](int row) -> const T* {
        const int r = block_key + 16 * warp + row;
        return r < in.kv_len ? from.at(b, kv_head, r) : nullptr;
      });
    }
  };
  copy_own(memory, in.key, in.head_dim);
  copy_own(memory + rows * Head, in.value, in.value_dim);

  // Tiles of the queries that see any of these keys; between full_first and full_last all see all.
  const Band& band = in.band;
  const int last_key = min(block_key + rows, in.kv_len) - 1;
  const int first_query = max(band.first_query(block_key), 0), end_query = min(band.end_query(last_key), in.q_len);
  const int begin = first_query / queries, tiles = max((end_query + queries - 1) / queries - begin, 0);
  const int full_first = band.first_query(last_key), full_end = band.end_query(block_key);
  const int items = tiles * in.group;
  const auto fetch = [&](int item, int slot) {
    if (item >= items) return;
    const int h = kv_head * in.group + item / tiles, first = (begin + item % tiles) * queries;
    const auto copy = [&](int which, const View<const T>& view, int width) {
      copy_tile(Tile(ring + (2 * slot + which) * Tile::elements), width, in.query.data, [&](int row) -> const T* {
        return view.data && first + row < in.q_len ? view.at(b, h, first + row) : nullptr;
      });
    };
    copy(0, in.query, in.head_dim);
    copy(1, p.grad_output, in.value_dim);
  };
  Pipeline pipeline(p.stages, fetch);

  const int first_key = block_key + 16 * warp_id();
  const HeadDropout dropout(in.rules.dropout, b);
  Accumulators<Keys ? Head : 8> grad_key;
  Accumulators<Values ? Head : 8> grad_value;
  grad_key.clear();
  grad_value.clear();

  for (int item = 0; item < items; ++item) {
    const int slot = pipeline.step(fetch), h = kv_head * in.group + item / tiles;
    const int tile_query = (begin + item % tiles) * queries;
    const Tile query(ring + 2 * slot * Tile::elements), grad_output(ring + (2 * slot + 1) * Tile::elements);
    const RowTerms* const terms = p.terms.at(b, h) + tile_query;
    const QueryRow head_row(in, b, h, 0);
    const auto query_of = [&](int, int column) {
      QueryRow row = head_row;
      row.query = min(tile_query + column, in.q_len - 1);
      row.diagonal = row.query + band.offset;
      row.mask += row.query * in.rules.mask_query;
      return row;
    };
    const auto key_of = [&](int half, int) { return first_key + lane_id() / 4 + 8 * half; };
    const bool full = tile_query >= full_first && tile_query + queries <= full_end;

    Accumulators<queries> s, grad, factors, slope;
    s.clear();
    multiply<T, Head>(s, query, [&](std::uint32_t (&a)[4], int step) { load_left(a, key, 0, 16 * step); });  // K Q^T
    make_probabilities<T, Plain>(in, full, s, slope, query_of, key_of,
                                 [&](int, int column) { return terms[column].lse; });
    if constexpr (!Plain) {
      if (in.rules.dropout.seed) {
        for_each_dropout_transposed(dropout, h, tile_query, first_key, factors,
                                    [](float& x, float factor) { x = factor; });
      }
    }
    if constexpr (Keys) {
      grad.clear();
      multiply<T, Head>(grad, grad_output,  // V dO^T
                        [&](std::uint32_t (&a)[4], int step) { load_left(a, value, 0, 16 * step); });
    }
    make_score_gradients<T, Plain>(in, s, grad, factors, slope, [&](int, int column) { return terms[column].delta; });
    if constexpr (Values) {
      multiply_transposed<T, queries>(grad_value, grad_output,  // dV += P^T dO
                                      [&](std::uint32_t (&a)[4], int step) { as_left<T>(a, s, step); });
    }
    if constexpr (Keys) {
      multiply_transposed<T, queries>(grad_key, query,  // dK += dS^T Q
                                      [&](std::uint32_t (&a)[4], int step) { as_left<T>(a, grad, step); });
    }
  }

  ptx::wait_for_copies<0>();
  __syncthreads();
  const auto row_of = [&](const View<T>& view, int i) -> T* {
    return first_key + i < in.kv_len ? view.at(b, kv_head, first_key + i) : nullptr;
  };
  if constexpr (Keys) {
    grad_key.for_each([&](float& x, int, int) { x *= in.rules.scale; });
    if (p.grad_key.data) {
      store_rows(grad_key, my_rows, p.head_dim, p.packed_key, [&](int i) { return row_of(p.grad_key, i); });
    }
  }
  if constexpr (Values) {
    if (p.grad_value.data) {
      store_rows(grad_value, my_rows, p.value_dim, p.packed_value, [&](int i) { return row_of(p.grad_value, i); });
    }
  }
}

template <class T, int Head, bool Plain>
void launch_kernel(GradientParams<T> p, int warps, const Place& place) {
  p.row_tiles = (p.in.kv_len + 16 * warps - 1) / (16 * warps);
  const Launch shape{std::int64_t(p.in.batch) * p.in.kv_heads * p.row_tiles, warps * warp_size,
                     gradient_shared_bytes<Head>(warps, p.stages)};
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

}  // namespace bigmodel::cuda
