// A panel: the queries that share one vector-wide pass over the keys of their kv head, one query per lane.
//
// When a head has fewer queries than a panel has lanes, the query heads of a kv head share panels (row r of the kv head
// is query r mod q_len of its head r / q_len); else every panel belongs to one head, and the panels of a kv head are
// ordered by query first, so that neighbours see nearly the same keys.
#pragma once

#include "cpu/attention_band.h"
#include "cpu/isa/pack.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

struct AttentionShape {
  std::int64_t batch, heads, kv_heads, group, q_len, kv_len, head_dim;
  bool shares_panels;
  std::int64_t panels;  // of one kv head
};

BIGMODEL_INLINE std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

BIGMODEL_INLINE AttentionShape attention_shape(const AttentionInputs& inputs) {
  AttentionShape shape;
  shape.batch = inputs.query.size[0], shape.heads = inputs.query.size[1], shape.q_len = inputs.query.size[2];
  shape.head_dim = inputs.query.size[3];
  shape.kv_heads = inputs.key.size[1], shape.kv_len = inputs.key.size[2];
  shape.group = shape.kv_heads > 0 ? shape.heads / shape.kv_heads : 0;
  shape.shares_panels = shape.q_len < tile_columns && shape.group > 1;
  shape.panels = shape.shares_panels ? ceil_div(shape.group * shape.q_len, tile_columns)
                                     : shape.group * ceil_div(shape.q_len, tile_columns);
  return shape;
}

// The same where each query head is for itself: no panel has queries of two.
BIGMODEL_INLINE AttentionShape ungrouped(AttentionShape shape) {
  shape.kv_heads = shape.heads, shape.group = 1, shape.shares_panels = false;
  shape.panels = ceil_div(shape.q_len, tile_columns);
  return shape;
}

struct Panel {
  std::int64_t batch, queries;      // queries <= tile_columns lanes are in use
  bool one_head;                    // then lane l is query query[0] + l
  std::int32_t head[tile_columns];  // of every lane; lanes past `queries` repeat the last query
  std::int32_t query[tile_columns];
  std::int64_t first_key, end_key;        // keys that any query sees by its position
  std::int64_t first_common, end_common;  // keys that every query sees
};

static void make_panel(const AttentionShape& shape, const Band& band, std::int64_t batch, std::int64_t kv_head,
                       std::int64_t index, Panel& panel) {
  const std::int64_t first_head = kv_head * shape.group;
  panel.batch = batch;
  panel.one_head = !shape.shares_panels;
  panel.first_key = panel.end_common = shape.kv_len;
  panel.end_key = panel.first_common = 0;
  const std::int64_t row = shape.shares_panels ? index * tile_columns : index / shape.group * tile_columns;
  const std::int64_t rows = (shape.shares_panels ? shape.group : 1) * shape.q_len - row;
  panel.queries = rows < tile_columns ? rows : tile_columns;
  for (std::int64_t lane = 0; lane < tile_columns; ++lane) {
    const std::int64_t r = row + (lane < panel.queries ? lane : panel.queries - 1);
    const std::int64_t query = shape.shares_panels ? r % shape.q_len : r;
    panel.head[lane] = std::int32_t(first_head + (shape.shares_panels ? r / shape.q_len : index % shape.group));
    panel.query[lane] = std::int32_t(query);
    const std::int64_t first = band.first_key(query), end = band.end_key(query);
    if (first >= end) {  // sees nothing: no key is common to all
      panel.end_common = 0;
      continue;
    }
    if (first < panel.first_key) panel.first_key = first;
    if (end > panel.end_key) panel.end_key = end;
    if (first > panel.first_common) panel.first_common = first;
    if (end < panel.end_common) panel.end_common = end;
  }
}

// The element of a view [batch, heads, q_len, ...] that belongs to a lane.
BIGMODEL_INLINE std::int64_t lane_offset(const TensorView& view, const Panel& panel, std::int64_t lane) {
  return panel.batch * view.stride[0] + panel.head[lane] * view.stride[1] + panel.query[lane] * view.stride[2];
}

// Calls body(lane, count) for every run of lanes that are successive queries of one head.
template <class Body>
BIGMODEL_INLINE void for_each_run(const Panel& panel, const Body& body) {
  if (panel.one_head) return body(0, panel.queries);
  for (std::int64_t lane = 0, end; lane < panel.queries; lane = end) {
    for (end = lane + 1; end < panel.queries && panel.head[end] == panel.head[lane];) ++end;
    body(lane, end - lane);
  }
}

// Brings a view [batch, heads, q_len, columns] in as columns x lanes of a panel, fp32, from its column `first`.
// `room` holds as much as the destination.
template <class T>
static void load_panel(const TensorView& view, const Panel& panel, std::int64_t first, std::int64_t columns,
                       float* room, float* destination) {
  const T* data = static_cast<const T*>(view.data) + first * view.stride[3];
  if (panel.one_head) {
    copy_in(columns, panel.queries, data + lane_offset(view, panel, 0), view.stride[3], view.stride[2], destination,
            tile_columns);
    return;
  }
  for (std::int64_t i = 0; i < columns * tile_columns; ++i) destination[i] = 0;
  for_each_run(panel, [&](std::int64_t lane, std::int64_t count) {
    copy_in(columns, count, data + lane_offset(view, panel, lane), view.stride[3], view.stride[2], room, tile_columns);
    for (std::int64_t i = 0; i < columns; ++i) {
      for (std::int64_t l = 0; l < count; ++l) destination[i * tile_columns + lane + l] = room[i * tile_columns + l];
    }
  });
}

// The opposite: columns x lanes of a panel, fp32, to a view [batch, heads, q_len, columns] of T. `lanes` more floats
// than the panel are readable.
template <class T>
static void store_panel(const float* source, std::int64_t columns, const Panel& panel, const TensorView& view) {
  for_each_run(panel, [&](std::int64_t lane, std::int64_t count) {
    copy_out_transposed(columns, count, source + lane, tile_columns,
                        static_cast<T*>(view.data) + lane_offset(view, panel, lane), view.stride[2]);
  });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
