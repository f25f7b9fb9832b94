// The second product of attention, output [value_dim x queries] += V^T weights, in fp32 or in bfloat16.
//
// In fp32, V as it lies is the lhs by columns. Products of bfloat16 sum over pairs of keys: there V^T is packed by
// rows, once per block of keys, and the weights are rounded to pairs.
#pragma once

#include "cpu/attention_tile.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// The values of a run of keys. Element (key, column) is at data[key * stride + column] in fp32, and at
// data[column * stride + key] in bfloat16.
template <class Element>
struct Values {
  const Element* data;
  std::int64_t stride;
};

// The same values without their first keys.
BIGMODEL_INLINE Values<float> from_key(const Values<float>& values, std::int64_t key) {
  return {values.data + key * values.stride, values.stride};
}
BIGMODEL_INLINE Values<bfloat16> from_key(const Values<bfloat16>& values, std::int64_t key) {
  return {values.data + key, values.stride};
}

// A row of V^T ends with k_step zeros more, so that any run of its keys may be filled up to whole steps.
BIGMODEL_INLINE std::int64_t transposed_stride(std::int64_t keys) {
  return lhs_width<bfloat16>(keys) + Layout<bfloat16>::k_step;
}

template <class Element>
BIGMODEL_INLINE std::int64_t values_floats(const TensorView& view, std::int64_t keys, std::int64_t readers) {
  if constexpr (is_float<Element>) {
    return rows_floats<float>(view, keys, readers);
  } else {
    return floats_of<bfloat16>(view.size[3] * transposed_stride(keys));
  }
}

// The values of a run of keys of one kv head, in place or packed in `scratch`.
template <class T>
static Values<float> values_of(const TensorView& view, std::int64_t batch, std::int64_t kv_head, const KeyRange& keys,
                               std::int64_t readers, float* scratch) {
  const Rows<float> rows = rows_of<T>(view, batch, kv_head, keys, readers, scratch);
  return {rows.data, rows.stride};
}
template <class T>
static Values<bfloat16> values_of(const TensorView& view, std::int64_t batch, std::int64_t kv_head,
                                  const KeyRange& keys, std::int64_t, bfloat16* scratch) {
  const T* first = static_cast<const T*>(view.data) + row_offset(view, batch, kv_head, keys.first);
  const std::int64_t columns = view.size[3], width = lhs_width<bfloat16>(keys.count());
  const std::int64_t stride = transposed_stride(keys.count());
  pack_lhs(columns, keys.count(), first, view.stride[3], view.stride[2], scratch, stride);
  for (std::int64_t column = 0; column < columns; ++column) {
    __builtin_memset(scratch + column * stride + width, 0, sizeof(bfloat16) * Layout<bfloat16>::k_step);
  }
  return {scratch, stride};
}

// output = V^T tile.scores, these being the weights, or += where it accumulates. May use the rest of the tile.
static void add_values(const Values<float>& values, std::int64_t keys, std::int64_t queries, std::int64_t value_dim,
                       const TileScratch& tile, float* output, bool accumulate) {
  if (few_queries(queries)) {
    for (std::int64_t i = 0; i < (accumulate ? 0 : value_dim * tile_columns); i += lanes) store(output + i, zero());
    add_few_queries(keys, queries, value_dim, values.data, values.stride, tile.scores, output);
  } else {
    multiply_by_columns(value_dim, queries, keys, values.data, values.stride, tile.scores, tile_columns, output,
                        tile_columns, accumulate);
  }
}

#if defined(BIGMODEL_BF16_DOT)
static void add_values(const Values<bfloat16>& values, std::int64_t keys, std::int64_t queries, std::int64_t value_dim,
                       const TileScratch& tile, float* output, bool accumulate) {
  BFloat16Pair* weights = reinterpret_cast<BFloat16Pair*>(tile.room);
  pack_rhs(keys, queries, tile.scores, tile_columns, 1, weights, tile_columns);
  multiply_by_rows(value_dim, queries, packed_k<bfloat16>(keys), values.data, values.stride, weights, tile_columns,
                   output, tile_columns, accumulate);
}
#endif

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
