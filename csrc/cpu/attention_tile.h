// A panel of queries meets a block of keys: what the forward pass and the attention weights have in common.
#pragma once

#include "cpu/attention_few.h"
#include "cpu/attention_scores.h"
#include "cpu/online_softmax.h"
#include "cpu/operands.h"
#include "cpu/philox.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

inline constexpr std::int64_t cache_line_floats = 16;
BIGMODEL_INLINE std::int64_t whole_lines(std::int64_t floats) { return round_up(floats, cache_line_floats); }

// Keys per block: the scores of a panel stay in the first-level cache between their two products. Measured on Zen 3 at
// head_dim 64 and 128 (bench/NOTES.md).
template <class Element>
BIGMODEL_INLINE std::int64_t key_block_of(std::int64_t head_dim, std::int64_t value_dim) {
  const std::int64_t keys = head_dim + value_dim <= 256 ? 144 : head_dim + value_dim <= 512 ? 96 : 48;
  return round_up(keys, Layout<Element>::rows);
}

// Memory for one tile at a time; each piece of tile_scratch_floats().
struct TileScratch {
  float *scores, *mask, *room;
};
BIGMODEL_INLINE std::int64_t tile_scratch_floats(std::int64_t head_dim, std::int64_t key_block) {
  return whole_lines((head_dim > key_block ? head_dim : key_block) * tile_columns);
}

// Floats that a number of Elements take.
template <class Element>
BIGMODEL_INLINE std::int64_t floats_of(std::int64_t elements) {
  return whole_lines(ceil_div(elements * std::int64_t(sizeof(Element)), sizeof(float)));
}

// Whether a head's rows lie so far apart, by a multiple of a power of two, that they meet in few sets of the caches,
// where they push out each other and what else lies there: heads side by side in wide rows, more than L2 holds of them.
BIGMODEL_INLINE bool crowds_sets(const TensorView& view, std::int64_t element_bytes) {
  constexpr std::int64_t crowding_stride = 2048, cache_bytes = 2 << 20;
  const std::int64_t stride_bytes = view.stride[2] * element_bytes;
  return stride_bytes % crowding_stride == 0 && view.stride[2] > view.size[3] &&
         view.size[2] * stride_bytes > cache_bytes;
}

// `readers`: panels that read the rows, if packed, from there. Fewer save less than packing takes (bench/NOTES.md).
template <class Element>
BIGMODEL_INLINE bool in_place(const TensorView& view, std::int64_t readers) {
  const std::int64_t width = view.size[3];
  return view.dtype == dtype_of<Element> && (view.stride[3] == 1 || width == 1) && packed_k<Element>(width) == width &&
         !(readers > 2 && crowds_sets(view, sizeof(Element)));
}

BIGMODEL_INLINE std::int64_t row_offset(const TensorView& view, std::int64_t batch, std::int64_t kv_head,
                                        std::int64_t key) {
  return batch * view.stride[0] + kv_head * view.stride[1] + key * view.stride[2];
}

// A run of keys of one kv head, in place or packed in `scratch`.
template <class T, class Element>
static Rows<Element> rows_of(const TensorView& view, std::int64_t batch, std::int64_t kv_head, const KeyRange& keys,
                             std::int64_t readers, Element* scratch) {
  const T* first = static_cast<const T*>(view.data) + row_offset(view, batch, kv_head, keys.first);
  if (in_place<Element>(view, readers)) return {reinterpret_cast<const Element*>(first), view.stride[2]};
  const std::int64_t stride = lhs_width<Element>(view.size[3]);
  pack_lhs(keys.count(), view.size[3], first, view.stride[2], view.stride[3], scratch, stride);
  return {scratch, stride};
}
template <class Element>
BIGMODEL_INLINE std::int64_t rows_floats(const TensorView& view, std::int64_t keys, std::int64_t readers) {
  return in_place<Element>(view, readers) ? 0 : floats_of<Element>(keys * lhs_width<Element>(view.size[3]));
}

// Q^T of a panel in fp32, with the sign of the scale.
template <class T>
static void load_query(const AttentionInputs& inputs, const Panel& panel, float* room, float* query) {
  const std::int64_t head_dim = inputs.query.size[3];
  load_panel<T>(inputs.query, panel, 0, head_dim, room, query);
  if (inputs.options.scale >= 0) return;
  for (std::int64_t i = 0; i < head_dim * tile_columns; ++i) query[i] = -query[i];
}

// The same as the rhs of a product: rhs_rows<Element>(head_dim) rows of tile_columns lanes.
template <class T>
static void pack_query(const AttentionInputs& inputs, const Panel& panel, const TileScratch& tile, float* query) {
  load_query<T>(inputs, panel, tile.room, query);
}
template <class T>
static void pack_query(const AttentionInputs& inputs, const Panel& panel, const TileScratch& tile,
                       BFloat16Pair* query) {
  load_query<T>(inputs, panel, tile.room, tile.scores);
  pack_rhs(inputs.query.size[3], panel.queries, tile.scores, tile_columns, 1, query, tile_columns);
}

// tile.scores [keys x queries] = K Q^T
template <class Element>
static void multiply_keys(std::int64_t keys, std::int64_t queries, std::int64_t head_dim, const Rows<Element>& key,
                          const LaneOf<Element>* query, const TileScratch& tile) {
  if constexpr (is_float<Element>) {
    if (few_queries(queries) && head_dim % lanes == 0) {
      return multiply_few_queries(keys, queries, head_dim, key.data, key.stride, query, tile.room, tile.scores);
    }
  }
  multiply_by_rows(keys, queries, packed_k<Element>(head_dim), key.data, key.stride, query, tile_columns, tile.scores,
                   tile_columns, false);
}

// How scores are made, of a whole call.
struct ScoreTask {
  const AttentionInputs& inputs;
  Band band;
  bool applies_rules;
  ScoreUnit unit;
};

BIGMODEL_INLINE ScoreTask score_task(const AttentionInputs& inputs) {
  const bool applies_rules = has_rules(inputs);
  const float factor = applies_rules ? log2_e : __builtin_fabsf(inputs.options.scale) * log2_e;
  return {inputs, attention_band(inputs), applies_rules, {factor, applies_rules}};
}

// S^T of a panel with a run of keys, in tile.scores. May find that a mask leaves fewer keys, or none.
template <class T, class Element>
static void panel_scores(const ScoreTask& task, const Panel& panel, const LaneOf<Element>* query,
                         const Rows<Element>& key, KeyRange& keys, const TileScratch& tile) {
  const AttentionInputs& inputs = task.inputs;
  const std::int64_t first = keys.first;
  TileMask mask{.values = tile.mask, .room = tile.room};
  if (inputs.mask.data) load_mask<T>(inputs.mask, panel, keys, mask);
  if (keys.count() <= 0) return;
  const Element* rows = key.data + (keys.first - first) * key.stride;
  multiply_keys(keys.count(), panel.queries, inputs.query.size[3], Rows<Element>{rows, key.stride}, query, tile);
  if (task.applies_rules) {
    ScoreRules rules;
    make_rules(inputs, task.band, panel, rules);
    apply_rules(rules, mask, keys, panel.queries, tile.scores);
  }
  if (mask.removes && mask.form != TileMask::Form::none) {
    apply_boolean_mask(mask, keys.count(), panel.queries, tile.scores);
  }
  apply_band(task.band, panel, keys, tile.scores);
}

// Dropout of the weights in tile.scores.
static __attribute__((noinline)) void drop(const Dropout& dropout, const Panel& panel, const KeyRange& keys,
                                           const TileScratch& tile) {
  for (std::int64_t column = 0; column < panel.queries; column += lanes) {
    PhiloxWord heads, rows;
    for (int l = 0; l < lanes; ++l) {
      heads.lane[l] = std::uint32_t(panel.head[column + l]);
      rows.lane[l] = std::uint32_t(panel.query[column + l]);
    }
    dropout_factors(dropout, panel.batch, heads, rows, keys.first, keys.count(), tile.mask + column, tile_columns);
    for (std::int64_t key = 0; key < keys.count(); ++key) {
      float* at = tile.scores + key * tile_columns + column;
      store(at, load(at) * load(tile.mask + key * tile_columns + column));
    }
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
