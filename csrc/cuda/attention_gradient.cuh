// From the products of a tile to its probabilities and score gradients, in registers and in both orientations.
#pragma once

#include "cuda/attention_backward.cuh"
#include "cuda/attention_scores.cuh"
#include "cuda/dropout.cuh"
#include "cuda/pipeline.cuh"

namespace bigmodel::cuda {

template <class T>
struct GradientParams {
  AttentionTensors<T> in;
  View<const T> grad_output;
  RowTermsView terms;
  View<T> grad_query, grad_key, grad_value;
  bool packed_query, packed_key, packed_value;  // of the gradients
  int head_dim, value_dim;                      // of the gradients: those of `in` are filled up to whole chunks
  int row_tiles;
};

inline constexpr int gradient_warps = 4, gradient_stages = 2;

// Keys (or queries) of the tiles that pass by, so that two pairs of tiles fit beside the block's own pair; and, where
// scores have options, the terms of these fit into registers.
template <class T, int Head, bool Plain>
constexpr int passing_rows = [] {
  constexpr int rows = (Head <= 64 ? 64 : Head <= 128 ? 32 : 16) / (sizeof(T) / 2) / (Plain ? 1 : 2);
  return rows < 16 ? 16 : rows;
}();

// The block's own pair of tiles and the ring of pairs.
template <class T, int Head, bool Plain>
constexpr std::int64_t gradient_shared_bytes(int warps) {
  return std::int64_t(sizeof(T)) * Head * 2 * (16 * warps + gradient_stages * passing_rows<T, Head, Plain>);
}

// Groups of threads that copy together: blocks of large heads may have half as many warps as others.
template <int Head>
constexpr int copying_threads = (Head > 128 ? gradient_warps / 2 : gradient_warps) * warp_size;

// Starts copying a block's own rows of one head, sixteen for each warp, or zeros where there are none.
template <class T, int Head>
__device__ void copy_own_rows(T* to, const View<const T>& from, int b, int h, int first, int length, int width) {
  constexpr int threads = copying_threads<Head>, rows = threads / 2;
  const int thread = static_cast<int>(threadIdx.x) % threads, before = static_cast<int>(threadIdx.x) / threads * rows;
  const SharedTile<T, rows, Head> tile(to + before * Head);
  copy_rows<threads>(thread, tile, from.at(b, h), first + before, from.row, from.data ? length - first - before : 0,
                     width);
}

// Starts copying a tile that passes by.
template <class Tile, class T>
__device__ void copy_passing(T* to, const View<const T>& from, int b, int h, int first, int length, int width) {
  constexpr int threads = copying_threads<Tile::columns>;
  const T* const matrix = from.at(b, h);
  const int rows = from.data ? length - first : 0;
  if constexpr (threads == gradient_warps * warp_size) {
    copy_rows<threads>(static_cast<int>(threadIdx.x), Tile(to), matrix, first, from.row, rows, width);
  } else {
    copy_rows_by_groups<threads>(Tile(to), matrix, first, from.row, rows, width);
  }
}

// What only some calls compute: left undefined, it would keep its registers from one tile to the next.
template <int Columns>
__device__ void clear_terms(Accumulators<Columns>& factors, Accumulators<Columns>& slope) {
  factors.clear();
  slope.clear();
}

// Products to probabilities P. `slope` becomes d score / d (scale * product) where there is a softcap. lse_of(half,
// column) gives the query's log-sum-exp.
template <class T, bool Plain, int Columns, class QueryOf, class KeyOf, class LseOf>
__device__ void make_probabilities(const AttentionTensors<T>& in, bool full, Accumulators<Columns>& s,
                                   Accumulators<Columns>& slope, QueryOf query_of, KeyOf key_of, LseOf lse_of) {
  if constexpr (!Plain) {
    if (in.rules.softcap > 0) {
      const float inverse = in.rules.scale / in.rules.softcap;
#pragma unroll
      for (int block = 0; block < Columns / 8; ++block) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float t = tanhf(s.at[block][i] * inverse);
          slope.at[block][i] = 1.0f - t * t;
        }
      }
    }
    apply_rules<T>(in.rules, in.kv_len, s, query_of, key_of);
  }
  if (!full) remove_outside(in.band, s, query_of, key_of);
  const float unit = in.rules.scale * log2_e;
  s.for_each([&](float& x, int half, int column) {
    const float lse = lse_of(half, column);
    x = Plain ? ptx::exp2(fmaf(x, unit, -lse * log2_e)) : ptx::exp2((x - lse) * log2_e);
  });
}

// dS from P, dO V^T and the dropout factors F; P becomes P F.
template <class T, bool Plain, int Columns, class DeltaOf>
__device__ void make_score_gradients(const AttentionTensors<T>& in, Accumulators<Columns>& probabilities,
                                     Accumulators<Columns>& gradients, const Accumulators<Columns>& factors,
                                     const Accumulators<Columns>& slope, DeltaOf delta_of) {
  const int first = 2 * (lane_id() % 4);
#pragma unroll
  for (int block = 0; block < Columns / 8; ++block) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& p = probabilities.at[block][i];
      float& g = gradients.at[block][i];
      const float delta = delta_of(i / 2, 8 * block + first + i % 2);
      if constexpr (Plain) {
        g = p * (g - delta);
      } else {
        const float factor = in.rules.dropout.seed ? factors.at[block][i] : 1.0f;
        g = p * (g * factor - delta);
        if (in.rules.softcap > 0) g *= slope.at[block][i];
        p *= factor;
      }
    }
  }
}

template <int Head, bool Plain>
struct GradientKernel {};

// Calls body with the kernel for this call, and how many warps its blocks have. Heads of more than 128 features have no
// kernel of their own for scores without options: they are rare, and the general one does them as well.
template <class T, class Body>
void with_gradient_kernel(const GradientParams<T>& p, const Place& place, Body body) {
  const auto sized = [&]<int head, bool plain>(GradientKernel<head, plain> kernel) {
    const bool fits = gradient_shared_bytes<T, head, plain>(gradient_warps) <= place.shared_memory;
    body(kernel, fits ? gradient_warps : gradient_warps / 2);
  };
  with_head_size<T>(p.in.head_dim > p.in.value_dim ? p.in.head_dim : p.in.value_dim,
                    [&]<int head>(std::integral_constant<int, head>) {
                      if constexpr (head <= 128) {
                        if (p.in.rules.plain()) return sized(GradientKernel<head, true>{});
                      }
                      sized(GradientKernel<head, false>{});
                    });
}

template <class T>
void run_grad_query(const GradientParams<T>& p, const Place& place);
template <class T>
void run_grad_key(const GradientParams<T>& p, const Place& place);  // and of value

}  // namespace bigmodel::cuda
