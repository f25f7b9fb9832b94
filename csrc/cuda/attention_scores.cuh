// From products of queries and keys, as a warp's accumulators, to scores: in the order that bigmodel/attention.h
// states. Both orientations, queries as rows (forward, dQ) and keys as rows (dK, dV): the caller says which query and
// key an element belongs to.
#pragma once

#include <cmath>

#include "cuda/attention_inputs.cuh"
#include "cuda/tile.cuh"

namespace bigmodel::cuda {

inline constexpr float log2_e = 1.44269504088896341f, ln_2 = 0.693147180559945309f;

// One query, as the rules see it. Queries past the last stand for the last one.
struct QueryRow {
  int head, query, diagonal;
  float slope;
  std::int64_t mask;  // offset of its row

  QueryRow() = default;
  template <class T>
  __device__ QueryRow(const AttentionTensors<T>& p, int b, int h, int q)
      : head(h), query(min(q, p.q_len - 1)), diagonal(query + p.band.offset) {
    slope = p.rules.slope(b, h);
    mask = p.rules.mask_row(b, h, query);
  }
};

// Of the largest heads, scores with options need so many registers that what is known of a lane's queries is found anew
// for each tile of keys.
template <int Head, bool Plain>
constexpr bool keeps_query_rows = Plain || Head < 256;

// Adds, or removes by, one kind of mask. query_of(half, column) gives a QueryRow, key_of(half, column) a key.
template <class M, int Columns, class QueryOf, class KeyOf>
__device__ void apply_mask(const ScoreRules& rules, int last_key, Accumulators<Columns>& s, QueryOf query_of,
                           KeyOf key_of) {
  const M* const mask = static_cast<const M*>(rules.mask);
  s.for_each([&](float& x, int half, int column) {
    const M value = mask[query_of(half, column).mask + min(key_of(half, column), last_key) * rules.mask_key];
    if constexpr (sizeof(M) == 1) {
      if (!value) x = -INFINITY;
    } else {
      x += to_float(value);
    }
  });
}

// Products to scores in natural units.
template <class T, int Columns, class QueryOf, class KeyOf>
__device__ void apply_rules(const ScoreRules& rules, int kv_len, Accumulators<Columns>& s, QueryOf query_of,
                            KeyOf key_of) {
  s.for_each([&](float& x, int, int) { x *= rules.scale; });
  if (rules.softcap > 0) {
    const float inverse = 1.0f / rules.softcap;
    s.for_each([&](float& x, int, int) { x = rules.softcap * tanhf(x * inverse); });
  }
  if (rules.slopes) {
    s.for_each([&](float& x, int half, int column) {
      const QueryRow& row = query_of(half, column);
      x -= row.slope * fabsf(static_cast<float>(row.diagonal - key_of(half, column)));
    });
  }
  if (rules.mask_kind == ScoreRules::Mask::boolean) {
    apply_mask<std::uint8_t>(rules, kv_len - 1, s, query_of, key_of);
  } else if (rules.mask_kind == ScoreRules::Mask::wide) {
    apply_mask<float>(rules, kv_len - 1, s, query_of, key_of);
  } else if (rules.mask_kind == ScoreRules::Mask::own) {
    apply_mask<T>(rules, kv_len - 1, s, query_of, key_of);
  }
}

// Removes what lies outside the band, or past the last key.
template <int Columns, class QueryOf, class KeyOf>
__device__ void remove_outside(const Band& band, Accumulators<Columns>& s, QueryOf query_of, KeyOf key_of) {
  s.for_each([&](float& x, int half, int column) {
    const int query = query_of(half, column).query, key = key_of(half, column);
    if (key < band.first_key(query) || key >= band.end_key(query)) x = -INFINITY;
  });
}

}  // namespace bigmodel::cuda
