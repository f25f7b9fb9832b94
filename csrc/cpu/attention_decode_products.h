// The two products of decoding, which stream the rows of a cache once and convert them to fp32 in registers: dots of a
// few queries with keys, and sums of values weighted by a few queries' probabilities.
//
// Queries come in tiles of tile_queries; a tile's dots and weights lie as [key][tile_queries]. Rows of fp32 (queries
// and outputs) are in the order in which load_half delivers a cache's elements, padded with zeros to whole pairs of
// vectors.
#pragma once

#include "cpu/isa/pack.h"
#include "cpu/isa/sums.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

inline constexpr int tile_queries = 4;
inline constexpr int pair_lanes = 2 * lanes;
// Sums that stay in registers beside what is multiplied: of 16 vector registers, or of 32. Twice the latency of a
// multiply-add keeps both of a core's units busy.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int decode_sums = 16;
#else
inline constexpr int decode_sums = 8;
#endif

// Half of the pair_lanes elements at p, as a vector: the first or the last of them; of bfloat16 the even or the odd
// ones, which takes one operation each.
template <int half, class C>
BIGMODEL_INLINE F32 load_half(const C* p) {
  return load(p + half * lanes);
}
template <int half>
BIGMODEL_INLINE F32 half_of_pairs(I32 bits) {
  return as_float(half == 0 ? shift_left<16>(bits) : bits & set1_int(-0x10000));
}
template <int half>
BIGMODEL_INLINE F32 load_half(const bfloat16* p) {
  return half_of_pairs<half>(as_int(load(reinterpret_cast<const float*>(p))));
}

// The same of the last count < pair_lanes elements of a row, zeros after them.
template <int half, class C>
BIGMODEL_INLINE F32 load_last_half(const C* p, std::int64_t count) {
  if (half == 0) return load_up_to(p, count);
  return count > lanes ? load_first(p + lanes, int(count - lanes)) : zero();
}
template <int half>
BIGMODEL_INLINE F32 load_last_half(const bfloat16* p, std::int64_t count) {
  if (count % 2 == 0) {
    return half_of_pairs<half>(as_int(load_first(reinterpret_cast<const float*>(p), int(count / 2))));
  }
  bfloat16 buffer[pair_lanes] = {};
  for (std::int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return load_half<half>(buffer);
}

// How a loop reads a row: whole pairs of vectors, or what is left at its end.
struct WholePair {
  template <int half, class C>
  BIGMODEL_INLINE_MEMBER F32 read(const C* p) const {
    return load_half<half>(p);
  }
};
struct LastPair {
  std::int64_t count;
  template <int half, class C>
  BIGMODEL_INLINE_MEMBER F32 read(const C* p) const {
    return load_last_half<half>(p, count);
  }
};

// Where element e of a row stands among fp32.
template <class C>
inline constexpr bool in_pairs = false;
template <>
inline constexpr bool in_pairs<bfloat16> = true;

template <class C>
BIGMODEL_INLINE std::int64_t position_of(std::int64_t e) {
  return in_pairs<C> ? e / pair_lanes * pair_lanes + e % 2 * lanes + e % pair_lanes / 2 : e;
}

// dots[key][query] = the sums over the lanes of sums[key][query].
template <int keys, class V>
BIGMODEL_INLINE void store_dots(float* dots, const V (&sums)[keys][tile_queries]) {
  constexpr int whole = keys / 4 * 4;
#pragma GCC unroll 2
  for (int k = 0; k < whole; k += 4) store_16_sums(dots + k * tile_queries, sums[k]);
#pragma GCC unroll 8
  for (int k = whole; k < keys; ++k) store_4_sums(dots + k * tile_queries, sums[k]);
}

// sums += queries x keys of half a pair of vectors.
template <int half, int queries, int keys, class C, class Part>
BIGMODEL_INLINE void add_dots(const float* query, std::int64_t stride, const C* const* key, std::int64_t p, Part part,
                              F32 (&sums)[keys][tile_queries]) {
  F32 b[keys];
#pragma GCC unroll 8
  for (int k = 0; k < keys; ++k) b[k] = part.template read<half>(key[k] + p);
#pragma GCC unroll 4
  for (int q = 0; q < queries; ++q) {
    F32 a = load(query + q * stride + p + half * lanes);
    keep_in_register(a);
#pragma GCC unroll 8
    for (int k = 0; k < keys; ++k) sums[k][q] = fma(a, b[k], sums[k][q]);
  }
}

// dots[key][query] of `keys` keys and `queries` <= tile_queries queries.
template <int queries, int keys, class C>
BIGMODEL_INLINE void dot_keys(std::int64_t depth, const float* query, std::int64_t stride, const C* const* key,
                              float* dots) {
  F32 sums[keys][tile_queries];
#pragma GCC unroll 8
  for (int k = 0; k < keys; ++k) {
#pragma GCC unroll 4
    for (int q = 0; q < tile_queries; ++q) sums[k][q] = zero();
  }
  std::int64_t p = 0;
  for (; p + pair_lanes <= depth; p += pair_lanes) {
    add_dots<0, queries>(query, stride, key, p, WholePair{}, sums);
    add_dots<1, queries>(query, stride, key, p, WholePair{}, sums);
  }
  if (p < depth) {
    add_dots<0, queries>(query, stride, key, p, LastPair{depth - p}, sums);
    add_dots<1, queries>(query, stride, key, p, LastPair{depth - p}, sums);
  }
  store_dots(dots, sums);
}

// output[query][column ...] = keep[query] * itself + sum of weights[key][query] * value[key][column ...] over `keys`
// keys, for some pairs of vectors of columns.
template <int queries, int pairs, class C, class Part>
BIGMODEL_INLINE void add_columns(std::int64_t keys, const float* weights, const C* const* value, std::int64_t column,
                                 Part part, const float* keep, float* output, std::int64_t stride) {
  F32 sums[queries][2 * pairs];
#pragma GCC unroll 4
  for (int q = 0; q < queries; ++q) {
#pragma GCC unroll 8
    for (int v = 0; v < 2 * pairs; ++v) {
      sums[q][v] = load(output + q * stride + column + v * lanes) * set1(keep[q]);
    }
  }
  for (std::int64_t key = 0; key < keys; ++key) {
    F32 b[2 * pairs];
#pragma GCC unroll 4
    for (int v = 0; v < pairs; ++v) {
      b[2 * v] = part.template read<0>(value[key] + column + v * pair_lanes);
      b[2 * v + 1] = part.template read<1>(value[key] + column + v * pair_lanes);
    }
#pragma GCC unroll 4
    for (int q = 0; q < queries; ++q) {
      const F32 weight = set1(weights[key * tile_queries + q]);
#pragma GCC unroll 8
      for (int v = 0; v < 2 * pairs; ++v) sums[q][v] = fma(weight, b[v], sums[q][v]);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < queries; ++q) {
#pragma GCC unroll 8
    for (int v = 0; v < 2 * pairs; ++v) store(output + q * stride + column + v * lanes, sums[q][v]);
  }
}

// Where rows are fetched to that are read once: the second-level cache on processors with AVX-512, whose first level
// has too few requests on their way at a time (Zen 4: 65 % of the memory's bandwidth that way, 90 % this way);
// elsewhere the first level alone (Zen 3: 5 % faster).
inline constexpr bool asks_block_ahead = lanes == 16;
inline constexpr int prefetch_locality = asks_block_ahead ? 2 : 0;

// Rows that will be read soon: a share of them is asked for whenever the loops at hand have done a share of their work.
template <class C>
struct Prefetch {
  const C* const* row;
  std::int64_t rows, features;
  std::int64_t next = 0;

  BIGMODEL_INLINE_MEMBER void ask_until(std::int64_t end) {
    if (end > rows) end = rows;
    for (; next < end; ++next) {
      for (std::int64_t at = 0; at < features; at += 64 / sizeof(C))
        __builtin_prefetch(row[next] + at, 0, prefetch_locality);
    }
  }

  // The share of work that is done, of the whole of it.
  BIGMODEL_INLINE_MEMBER void ask_for(std::int64_t done, std::int64_t all) {
    if (next < rows) ask_until((rows * done + all - 1) / all);
  }
};

// body.operator()<count>(first) for runs of keys: as many as `queries` sums of each have registers for, `most` at most,
// and one by one at the end.
template <int queries, int most, class C, class Body>
BIGMODEL_INLINE void over_keys(std::int64_t keys, Prefetch<C>& prefetch, const Body& body) {
  constexpr int together = decode_sums / queries < most ? decode_sums / queries : most;
  std::int64_t k = 0;
  for (; k + together <= keys; k += together) {
    prefetch.ask_until(k + together);
    body.template operator()<together>(k);
  }
  for (; k < keys; ++k) {
    prefetch.ask_until(k + 1);
    body.template operator()<1>(k);
  }
}

// All dots of a tile with `keys` keys.
template <int queries, class C>
static __attribute__((noinline)) void dot_tile(std::int64_t keys, std::int64_t depth, const float* query,
                                               std::int64_t stride, const C* const* key, float* dots,
                                               Prefetch<C>& prefetch) {
  over_keys<queries, 8>(keys, prefetch, [&]<int count>(std::int64_t k) BIGMODEL_INLINE_LAMBDA {
    dot_keys<queries, count>(depth, query, stride, key + k, dots + k * tile_queries);
  });
}

// output = keep output + weights^T values of a tile.
template <int queries, class C>
static __attribute__((noinline)) void add_tile(std::int64_t keys, std::int64_t value_dim, const float* weights,
                                               const C* const* value, const float* keep, float* output,
                                               std::int64_t stride, Prefetch<C>& prefetch) {
  constexpr int pairs = decode_sums / queries >= 4 ? decode_sums / queries / 2 : 1;
  std::int64_t column = 0;
  for (; column + pairs * pair_lanes <= value_dim; column += pairs * pair_lanes) {
    prefetch.ask_for(column + pairs * pair_lanes, value_dim);
    add_columns<queries, pairs>(keys, weights, value, column, WholePair{}, keep, output, stride);
  }
  for (; column + pair_lanes <= value_dim; column += pair_lanes) {
    prefetch.ask_for(column + pair_lanes, value_dim);
    add_columns<queries, 1>(keys, weights, value, column, WholePair{}, keep, output, stride);
  }
  if (column < value_dim) {
    prefetch.ask_for(value_dim, value_dim);
    add_columns<queries, 1>(keys, weights, value, column, LastPair{value_dim - column}, keep, output, stride);
  }
}

// body(integral constant) for 1 ... tile_queries queries.
template <int queries>
struct Queries {};
template <class Body>
BIGMODEL_INLINE void with_queries(std::int64_t queries, const Body& body) {
  switch (queries) {
    case 1:
      return body(Queries<1>{});
    case 2:
      return body(Queries<2>{});
    case 3:
      return body(Queries<3>{});
    default:
      return body(Queries<4>{});
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
