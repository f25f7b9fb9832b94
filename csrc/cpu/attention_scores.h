// From the products of a panel's queries with some keys to their scores: scale, softcap, ALiBi, masks, removals. A tile
// is keys x lanes with rows of tile_columns.
#pragma once

#include "cpu/attention_panel.h"
#include "cpu/isa/vec_math.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// What a mask does to the tile at hand. It is kept per key where it is the same for all lanes.
struct TileMask {
  enum class Form { none, per_key, per_lane } form = Form::none;
  bool removes = false;  // boolean: removes where negative; else it is added
  float* values;         // room for a tile
  float* room;           // room for another
};

// A run of keys, [first, end).
struct KeyRange {
  std::int64_t first, end;
  std::int64_t count() const { return end - first; }
};

// Booleans as the additive mask that they stand for, or a first element converted to fp32.
BIGMODEL_INLINE float mask_value(const std::uint8_t* p) { return *p ? 0.0f : -infinity; }
template <class T>
BIGMODEL_INLINE float mask_value(const T* p) {
  return reduce_add(load_first(p, 1));
}
BIGMODEL_INLINE float mask_value(const float* p) { return *p; }

// One row of the mask serves all lanes: keys removed at either end shorten the range.
template <class M>
static void load_key_mask(const M* mask, std::int64_t stride, KeyRange& keys, TileMask& tile) {
  while (keys.first < keys.end && mask_value(mask + keys.first * stride) == -infinity) ++keys.first;
  while (keys.first < keys.end && mask_value(mask + (keys.end - 1) * stride) == -infinity) --keys.end;
  bool changes = false;
  for (std::int64_t key = keys.first; key < keys.end; ++key) {
    const float value = mask_value(mask + key * stride);
    tile.values[key - keys.first] = value;
    changes |= value != 0;
  }
  tile.form = changes ? TileMask::Form::per_key : TileMask::Form::none;
}

// Booleans of any strides: to fp32 rows lane by lane, then transposed.
static void load_boolean_mask(const TensorView& view, const Panel& panel, KeyRange& keys, TileMask& tile) {
  const std::int64_t count = keys.count(), stride = view.stride[3];
  std::uint8_t any = 0, all = 1;
  for (std::int64_t lane = 0; lane < panel.queries; ++lane) {
    const std::uint8_t* row =
        static_cast<const std::uint8_t*>(view.data) + lane_offset(view, panel, lane) + keys.first * stride;
    float* values = tile.room + lane * count;
    if (stride == 1) {
      for (std::int64_t key = 0; key < count; ++key) values[key] = row[key] ? 0.0f : -infinity;
      for (std::int64_t key = 0; key < count; ++key) any |= row[key], all &= row[key] != 0;
    } else {
      for (std::int64_t key = 0; key < count; ++key) {
        values[key] = row[key * stride] ? 0.0f : -infinity;
        any |= row[key * stride], all &= row[key * stride] != 0;
      }
    }
  }
  if (!any) keys.end = keys.first;
  if (all || !any) return;
  copy_in(count, panel.queries, tile.room, 1, count, tile.values, tile_columns);
  tile.form = TileMask::Form::per_lane;
}

template <class M>
static void load_additive_mask(const TensorView& view, const Panel& panel, KeyRange& keys, TileMask& tile) {
  load_panel<M>(view, panel, keys.first, keys.count(), tile.room, tile.values);
  tile.form = TileMask::Form::per_lane;
}

template <class T>
static void load_mask(const TensorView& view, const Panel& panel, KeyRange& keys, TileMask& tile) {
  tile.form = TileMask::Form::none;
  tile.removes = view.dtype == DType::boolean;
  const bool same_for_all =
      (view.stride[2] == 0 || panel.queries == 1) && (panel.one_head || view.stride[1] == 0 || panel.queries == 1);
  const std::int64_t first = lane_offset(view, panel, 0);
  if (view.dtype == DType::boolean) {
    if (!same_for_all) return load_boolean_mask(view, panel, keys, tile);
    load_key_mask(static_cast<const std::uint8_t*>(view.data) + first, view.stride[3], keys, tile);
  } else if (view.dtype == DType::float32) {
    if (!same_for_all) return load_additive_mask<float>(view, panel, keys, tile);
    load_key_mask(static_cast<const float*>(view.data) + first, view.stride[3], keys, tile);
  } else {
    if (!same_for_all) return load_additive_mask<T>(view, panel, keys, tile);
    load_key_mask(static_cast<const T*>(view.data) + first, view.stride[3], keys, tile);
  }
}

// What applies to the products besides masks and bands. Lanes may belong to different heads.
struct ScoreRules {
  float scale;    // of the products, not negative
  float softcap;  // 0: none
  bool alibi;
  float slope[tile_columns];     // ALiBi's
  float diagonal[tile_columns];  // d(i) of every lane
};

static void make_rules(const AttentionInputs& inputs, const Band& band, const Panel& panel, ScoreRules& rules) {
  rules.scale = __builtin_fabsf(inputs.options.scale);
  rules.softcap = inputs.options.softcap;
  rules.alibi = inputs.alibi_slopes.data != nullptr;
  if (!rules.alibi) return;
  const TensorView& slopes = inputs.alibi_slopes;
  for (int lane = 0; lane < tile_columns; ++lane) {
    rules.slope[lane] =
        static_cast<const float*>(slopes.data)[panel.batch * slopes.stride[0] + panel.head[lane] * slopes.stride[1]];
    rules.diagonal[lane] = float(panel.query[lane] + band.offset);
  }
}

// Whether apply_rules is wanted. Removals alone do not need it: the softmax scales by itself, except by a scale of
// (next to) nothing, which would make NaN of a removed score.
BIGMODEL_INLINE bool has_rules(const AttentionInputs& inputs) {
  const AttentionOptions& options = inputs.options;
  const bool adds_mask = inputs.mask.data && inputs.mask.dtype != DType::boolean;
  return options.softcap > 0 || inputs.alibi_slopes.data || adds_mask || __builtin_fabsf(options.scale) < 0x1p-100f;
}

// Products to scores in natural units: scale, softcap, ALiBi, additive mask.
static __attribute__((noinline)) void apply_rules(const ScoreRules& rules, const TileMask& mask, const KeyRange& keys,
                                                  std::int64_t queries, float* scores) {
  const F32 scale = set1(rules.scale), cap = set1(rules.softcap);
  const F32 inverse_cap = set1(rules.softcap > 0 ? 1.0f / rules.softcap : 0.0f);
  const bool per_key = !mask.removes && mask.form == TileMask::Form::per_key;
  const bool per_lane = !mask.removes && mask.form == TileMask::Form::per_lane;
  for (std::int64_t column = 0; column < queries; column += lanes) {
    for (std::int64_t key = 0; key < keys.count(); ++key) {
      float* at = scores + key * tile_columns + column;
      F32 score = load(at) * scale;
      if (rules.softcap > 0) score = cap * tanh(score * inverse_cap);
      if (rules.alibi) {
        const F32 distance = abs(load(rules.diagonal + column) - set1(float(keys.first + key)));
        score = fnma(load(rules.slope + column), distance, score);
      }
      if (per_key) score = score + set1(mask.values[key]);
      if (per_lane) score = score + load(mask.values + key * tile_columns + column);
      store(at, score);
    }
  }
}

// Removes what a boolean mask removes. A comparison, not a sum, so that not even a NaN survives.
static __attribute__((noinline)) void apply_boolean_mask(const TileMask& mask, std::int64_t keys, std::int64_t queries,
                                                         float* scores) {
  const F32 removed = set1(-infinity);
  for (std::int64_t column = 0; column < queries; column += lanes) {
    for (std::int64_t key = 0; key < keys; ++key) {
      float* at = scores + key * tile_columns + column;
      if (mask.form == TileMask::Form::per_lane) {
        store(at, select(less(load(mask.values + key * tile_columns + column), zero()), removed, load(at)));
      } else if (mask.values[key] < 0) {
        store(at, removed);
      }
    }
  }
}

// Removes, of the keys [first, end), those outside each lane's band.
static __attribute__((noinline)) void remove_outside(const Band& band, const Panel& panel, const KeyRange& keys,
                                                     float* scores, std::int64_t first, std::int64_t end) {
  float before[tile_columns], after[tile_columns];  // the last key before, and the first after, those that are kept
  for (int lane = 0; lane < tile_columns; ++lane) {
    before[lane] = float(band.first_key(panel.query[lane]) - 1 - keys.first);
    after[lane] = float(band.end_key(panel.query[lane]) - keys.first);
  }
  const F32 removed = set1(-infinity);
  for (std::int64_t key = first - keys.first; key < end - keys.first; ++key) {
    const F32 position = set1(float(key));
    for (std::int64_t column = 0; column < panel.queries; column += lanes) {
      float* at = scores + key * tile_columns + column;
      const F32 score = select(less(load(before + column), position), load(at), removed);
      store(at, select(less(position, load(after + column)), score, removed));
    }
  }
}

// Only keys that some lane does not see need a look.
static void apply_band(const Band& band, const Panel& panel, const KeyRange& keys, float* scores) {
  const std::int64_t first_common = panel.first_common < keys.end ? panel.first_common : keys.end;
  const std::int64_t end_common = panel.end_common > first_common ? panel.end_common : first_common;
  if (keys.first < first_common) remove_outside(band, panel, keys, scores, keys.first, first_common);
  const std::int64_t rest = end_common > keys.first ? end_common : keys.first;
  if (rest < keys.end) remove_outside(band, panel, keys, scores, rest, keys.end);
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
