// A panel of queries meets a block of keys: what the forward pass and the attention weights have in common.
#pragma once

#include "cpu/attention_few.h"
#include "cpu/attention_scores.h"
#include "cpu/online_softmax.h"
#include "cpu/philox.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

inline constexpr std::int64_t cache_line_floats = 16;
BIGMODEL_INLINE std::int64_t whole_lines(std::int64_t floats) { return round_up(floats, cache_line_floats); }

// Keys per block: the scores of a panel stay in the first-level cache between their two products. Measured on Zen 3 at
// head_dim 64 and 128 (bench/NOTES.md).
BIGMODEL_INLINE std::int64_t key_block_of(std::int64_t head_dim, std::int64_t value_dim) {
  const std::int64_t keys = head_dim + value_dim <= 256 ? 144 : head_dim + value_dim <= 512 ? 96 : 48;
  return round_up(keys, tile_rows);
}

// Memory for one tile at a time; each piece of tile_scratch_floats().
struct TileScratch {
  float *scores, *mask, *room;
};
BIGMODEL_INLINE std::int64_t tile_scratch_floats(std::int64_t head_dim, std::int64_t key_block) {
  return whole_lines((head_dim > key_block ? head_dim : key_block) * tile_columns);
}

// A matrix of keys or values: rows of one kv head, fp32.
struct Rows {
  const float* data;
  std::int64_t stride;
};

BIGMODEL_INLINE bool in_place(const TensorView& view) {
  return view.dtype == DType::float32 && (view.stride[3] == 1 || view.size[3] == 1);
}

// Of rows converted to fp32.
BIGMODEL_INLINE std::int64_t row_stride(const TensorView& view) { return round_up(view.size[3], lanes); }

// A run of keys of one kv head, in place or converted to fp32 in `scratch`.
template <class T>
static Rows rows_of(const TensorView& view, std::int64_t batch, std::int64_t kv_head, const KeyRange& keys,
                    float* scratch) {
  const T* first = static_cast<const T*>(view.data) + batch * view.stride[0] + kv_head * view.stride[1] +
                   keys.first * view.stride[2];
  if (in_place(view)) return {reinterpret_cast<const float*>(first), view.stride[2]};
  copy_in(keys.count(), view.size[3], first, view.stride[2], view.stride[3], scratch, row_stride(view));
  return {scratch, row_stride(view)};
}

// Packs Q^T of a panel, with the sign of the scale.
template <class T>
static void pack_query(const AttentionInputs& inputs, const Panel& panel, float* room, float* query) {
  const std::int64_t head_dim = inputs.query.size[3];
  load_panel<T>(inputs.query, panel, 0, head_dim, room, query);
  if (inputs.options.scale >= 0) return;
  for (std::int64_t i = 0; i < head_dim * tile_columns; ++i) query[i] = -query[i];
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
template <class T>
static void panel_scores(const ScoreTask& task, const Panel& panel, const float* query, const Rows& key, KeyRange& keys,
                         const TileScratch& tile) {
  const AttentionInputs& inputs = task.inputs;
  const std::int64_t first = keys.first;
  TileMask mask{.values = tile.mask, .room = tile.room};
  if (inputs.mask.data) load_mask<T>(inputs.mask, panel, keys, mask);
  if (keys.count() <= 0) return;
  const float* rows = key.data + (keys.first - first) * key.stride;
  const std::int64_t head_dim = inputs.query.size[3];
  if (few_queries(panel.queries) && head_dim % lanes == 0) {
    multiply_few_queries(keys.count(), panel.queries, head_dim, rows, key.stride, query, tile.room, tile.scores);
  } else {
    multiply_by_rows(keys.count(), panel.queries, head_dim, rows, key.stride, query, tile_columns, tile.scores,
                     tile_columns, false);
  }
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
