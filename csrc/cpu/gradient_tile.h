// The products of attention's backward pass on one tile of key_block keys by query_block queries, lanes along the
// queries: S^T = K Q^T, dP^T = V dO^T, dV += P^T dO, dK += dS^T Q, dQ += dS K. Each is laid out as the micro-kernel
// wants it. In fp32 nothing is transposed but Q and dO, once per block of queries; in bfloat16, whose products sum over
// pairs, also K, once per chunk of keys, and dQ, which is formed as dQ^T += K^T dS^T.
#pragma once

#include "cpu/operands.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

namespace {

constexpr std::int64_t query_block = 64;
constexpr std::int64_t key_block = 64;

// Queries in one panel of the micro-kernel: the grain, along queries and keys alike, at which a tile is skipped.
constexpr std::int64_t grain = tile_columns;
constexpr std::int64_t grains = query_block / grain;
static_assert(query_block % grain == 0 && key_block % grain == 0);

// Keys that a query may see by its position alone: d(i) - before <= j <= d(i) + after with d(i) = i + offset.
struct Band {
  std::int64_t offset, before, after, kv_len;

  std::int64_t clamp(std::int64_t key) const { return key < 0 ? 0 : key > kv_len ? kv_len : key; }
  std::int64_t first_key(std::int64_t query) const { return clamp(query + offset - before); }
  std::int64_t end_key(std::int64_t query) const { return clamp(query + offset + after + 1); }
  // Queries that see any of the keys [first, end), of q_len.
  std::int64_t first_query(std::int64_t first) const { return first - after - offset; }
  std::int64_t end_query(std::int64_t end) const { return end + before - offset; }
};

// Which part of a tile any query sees. Both bounds never fall from one panel of queries to the next, so that the panels
// that see a given key are adjacent too.
struct TileShape {
  std::int64_t first_query, first_key, queries, keys;  // of the tile
  bool empty;                                          // no query sees a key
  bool whole;                                          // every panel sees every key
  bool inside;                                         // every query sees every key
  std::int64_t begin[grains], end[grains];             // keys that a panel sees: multiples of grain, or keys
};

TileShape tile_shape(const Band& band, std::int64_t first_query, std::int64_t queries, std::int64_t first_key,
                     std::int64_t keys) {
  TileShape tile;
  tile.first_query = first_query, tile.first_key = first_key, tile.queries = queries, tile.keys = keys;
  tile.empty = tile.whole = true;
  const auto in_tile = [&](std::int64_t key) { return key < 0 ? 0 : key > keys ? keys : key; };
  for (std::int64_t panel = 0, q = 0; q < queries; ++panel, q += grain) {
    const std::int64_t last = first_query + (q + grain < queries ? q + grain : queries) - 1;
    const std::int64_t begin = in_tile(band.first_key(first_query + q) - first_key) / grain * grain;
    const std::int64_t end = in_tile(round_up(in_tile(band.end_key(last) - first_key), grain));
    tile.begin[panel] = begin, tile.end[panel] = end;
    tile.empty &= begin >= end;
    tile.whole &= begin == 0 && end == keys;
  }
  tile.inside = band.first_key(first_query + queries - 1) <= first_key && band.end_key(first_query) >= first_key + keys;
  return tile;
}

// Scores: out[keys x queries] = lhs[keys x depth] rhs[depth x queries], the parts that are seen.
template <class Element>
void multiply_scores(const TileShape& tile, std::int64_t depth, const Rows<Element>& lhs, const LaneOf<Element>* rhs,
                     float* out) {
  depth = packed_k<Element>(depth);
  if (tile.whole) {
    multiply_by_rows(tile.keys, tile.queries, depth, lhs.data, lhs.stride, rhs, query_block, out, query_block, false);
    return;
  }
  for (std::int64_t panel = 0, q = 0; q < tile.queries; ++panel, q += grain) {
    const std::int64_t first = tile.begin[panel], count = tile.end[panel] - first;
    const std::int64_t columns = tile.queries - q < grain ? tile.queries - q : grain;
    multiply_by_rows(count, columns, depth, lhs.data + first * lhs.stride, lhs.stride, rhs + q, query_block,
                     out + first * query_block + q, query_block, false);
  }
}

// Gradients of keys and values: out[keys x width] (+)= scores[keys x queries] rhs[queries x width].
template <class Element>
void multiply_to_keys(const TileShape& tile, std::int64_t width, const Element* scores, const LaneOf<Element>* rhs,
                      float* out, std::int64_t stride, bool add) {
  if (tile.whole) {
    multiply_by_rows(tile.keys, width, packed_k<Element>(tile.queries), scores, query_block, rhs, stride, out, stride,
                     add);
    return;
  }
  for (std::int64_t key = 0; key < tile.keys; key += grain) {
    const std::int64_t rows = tile.keys - key < grain ? tile.keys - key : grain;
    std::int64_t begin = 0, end = (tile.queries + grain - 1) / grain;
    while (begin < end && tile.end[begin] <= key) ++begin;
    while (begin < end && tile.begin[end - 1] >= key + rows) --end;
    const std::int64_t first = begin * grain, last = end * grain < tile.queries ? end * grain : tile.queries;
    multiply_by_rows(rows, width, packed_k<Element>(first < last ? last - first : 0),
                     scores + key * query_block + first, query_block, rhs + first / Layout<Element>::group * stride,
                     stride, out + key * stride, stride, add);
  }
}

// Gradient of queries in fp32: out[queries x width] (+)= scores^T[queries x keys] key[keys x width].
void multiply_to_queries(const TileShape& tile, std::int64_t width, const float* scores, const Rows<float>& key,
                         float* out, std::int64_t stride, bool add) {
  if (tile.whole) {
    multiply_by_columns(tile.queries, width, tile.keys, scores, query_block, key.data, key.stride, out, stride, add);
    return;
  }
  for (std::int64_t panel = 0, q = 0; q < tile.queries; ++panel, q += grain) {
    const std::int64_t first = tile.begin[panel], count = tile.end[panel] - first;
    const std::int64_t rows = tile.queries - q < grain ? tile.queries - q : grain;
    multiply_by_columns(rows, width, count, scores + first * query_block + q, query_block,
                        key.data + first * key.stride, key.stride, out + q * stride, stride, add);
  }
}

#if defined(BIGMODEL_BF16_DOT)

// The same in bfloat16, transposed: out[width x queries] (+)= key^T[width x keys] scores[keys x queries], rows of out
// query_block apart.
void multiply_to_queries(const TileShape& tile, std::int64_t width, const BFloat16Pair* scores,
                         const Rows<bfloat16>& key_columns, float* out, bool add) {
  if (tile.whole) {
    multiply_by_rows(width, tile.queries, packed_k<bfloat16>(tile.keys), key_columns.data, key_columns.stride, scores,
                     query_block, out, query_block, add);
    return;
  }
  for (std::int64_t panel = 0, q = 0; q < tile.queries; ++panel, q += grain) {
    const std::int64_t first = tile.begin[panel], count = tile.end[panel] - first;
    const std::int64_t columns = tile.queries - q < grain ? tile.queries - q : grain;
    multiply_by_rows(width, columns, packed_k<bfloat16>(count), key_columns.data + first, key_columns.stride,
                     scores + first / 2 * query_block + q, query_block, out + q, query_block, add);
  }
}

// What is seen of a tile, rounded: rows of it as an lhs.
void round_rows(const TileShape& tile, const float* scores, bfloat16* rows) {
  for (std::int64_t panel = 0, q = 0; q < tile.queries; ++panel, q += grain) {
    for (std::int64_t key = tile.begin[panel]; key < tile.end[panel]; ++key) {
      const std::int64_t at = key * query_block + q;
      for (std::int64_t j = 0; j < grain; j += 2 * lanes) {
        // What lies past the last query was never computed, or from keys that no query may see.
        const auto part = [&](std::int64_t i) BIGMODEL_INLINE_LAMBDA {
          const std::int64_t left = tile.queries - q - i;
          return left > 0 ? load_up_to(scores + at + i, left) : zero();
        };
        store_rounded(rows + at + j, part(j), part(j + lanes));
      }
    }
  }
}

// The same as pairs of keys: an rhs.
void round_pairs(const TileShape& tile, const float* scores, BFloat16Pair* pairs) {
  for (std::int64_t panel = 0, q = 0; q < tile.queries; ++panel, q += grain) {
    const std::int64_t end = tile.end[panel], last = round_up(end, Layout<bfloat16>::k_step);
    for (std::int64_t key = tile.begin[panel]; key < last; key += 2) {
      for (std::int64_t j = q; j < q + grain && j < tile.queries; j += lanes) {
        const auto row = [&](std::int64_t i)
                             BIGMODEL_INLINE_LAMBDA { return i < end ? load(scores + i * query_block + j) : zero(); };
        store_pairs(pairs + key / 2 * query_block + j, row(key), row(key + 1));
      }
    }
  }
}

#endif

}  // namespace

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
