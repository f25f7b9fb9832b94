// The cache as decoding sees it: runs of keys as rows in memory, wherever their pages are, and new rows written to it.
#pragma once

#include "bigmodel/attention_decode.h"
#include "cpu/attention_decode_products.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// An element of an int32 or int64 tensor.
BIGMODEL_INLINE std::int64_t index_at(const TensorView& view, std::int64_t i, std::int64_t j = 0) {
  const std::int64_t at = i * view.stride[0] + j * view.stride[1];
  return view.dtype == DType::int32 ? static_cast<const std::int32_t*>(view.data)[at]
                                    : static_cast<const std::int64_t*>(view.data)[at];
}

// Of one sequence and kv head: entries of the key or value cache, or of their scales.
template <class Element>
struct CacheRows {
  Element* data;  // of the kv head, in page 0
  std::int64_t page_stride, stride;
};

template <class Element>
BIGMODEL_INLINE CacheRows<Element> cache_rows(const TensorView& view, std::int64_t kv_head) {
  return {static_cast<Element*>(view.data) + kv_head * view.stride[1], view.stride[0], view.stride[2]};
}

// Where an entry is.
struct CachePlace {
  std::int64_t page, slot;
};

template <class Element>
BIGMODEL_INLINE Element* entry(const CacheRows<Element>& rows, const CachePlace& place) {
  return rows.data + place.page * rows.page_stride + place.slot * rows.stride;
}

// Calls body(i, place) for the keys first + i, i < count, of sequence b.
template <class Body>
BIGMODEL_INLINE void for_each_entry(const AttentionDecodeArgs& args, std::int64_t b, std::int64_t first,
                                    std::int64_t count, const Body& body) {
  if (!args.block_table.data) {
    for (std::int64_t i = 0; i < count; ++i) body(i, CachePlace{b, first + i});
    return;
  }
  const std::int64_t page_size = args.key_cache.size[2];
  std::int64_t page = first / page_size, slot = first % page_size;
  for (std::int64_t i = 0; i < count; slot = 0, ++page) {
    const std::int64_t here = index_at(args.block_table, b, page);
    for (; slot < page_size && i < count; ++slot, ++i) body(i, CachePlace{here, slot});
  }
}

// A run of keys that are worked on together.
template <class C>
struct DecodeBlock {
  static constexpr std::int64_t most = 64;
  std::int64_t first, count;
  const C *key[most], *value[most];  // after an odd number the last value once more
  // Of int8 caches, once for each query of a tile; zeros after the last up to a whole vector.
  float key_scale[most * tile_queries], value_scale[most * tile_queries];
};

template <class C>
inline constexpr bool is_int8 = false;
template <>
inline constexpr bool is_int8<std::int8_t> = true;

template <class C>
static void locate(const AttentionDecodeArgs& args, std::int64_t b, std::int64_t kv_head, std::int64_t first,
                   std::int64_t count, DecodeBlock<C>& block) {
  const CacheRows<const C> key = cache_rows<const C>(args.key_cache, kv_head);
  const CacheRows<const C> value = cache_rows<const C>(args.value_cache, kv_head);
  block.first = first;
  block.count = count;
  for_each_entry(args, b, first, count, [&](std::int64_t i, const CachePlace& place) BIGMODEL_INLINE_LAMBDA {
    block.key[i] = entry(key, place);
    block.value[i] = entry(value, place);
  });
  if (count % 2 == 1) block.value[count] = block.value[count - 1];
  if constexpr (is_int8<C>) {
    const CacheRows<const float> key_scale = cache_rows<const float>(args.key_scales, kv_head);
    const CacheRows<const float> value_scale = cache_rows<const float>(args.value_scales, kv_head);
    for_each_entry(args, b, first, count, [&](std::int64_t i, const CachePlace& place) BIGMODEL_INLINE_LAMBDA {
      for (int q = 0; q < tile_queries; ++q) {
        block.key_scale[i * tile_queries + q] = *entry(key_scale, place);
        block.value_scale[i * tile_queries + q] = *entry(value_scale, place);
      }
    });
    for (std::int64_t i = count * tile_queries; i < round_up(count * tile_queries, lanes); ++i) {
      block.key_scale[i] = 0, block.value_scale[i] = 0;
    }
  }
}

// Writes a row of fp32, zeros up to a whole vector after it, to an entry of the cache.
template <class C>
static void write_entry(std::int64_t features, const float* row, C* to, float*) {
  for (std::int64_t e = 0; e < features; e += lanes) store_up_to(to + e, load(row + e), features - e);
}
static void write_entry(std::int64_t features, const float* row, std::int8_t* to, float* scale) {
  F32 largest = zero(), unbounded = zero();  // the maximum may lose a NaN
  for (std::int64_t e = 0; e < features; e += lanes) {
    largest = max(largest, abs(load(row + e)));
    unbounded = fma(load(row + e), zero(), unbounded);
  }
  *scale = reduce_max(largest) / 127.0f + reduce_add(unbounded);
  for (std::int64_t e = 0; e < features; e += lanes) {
    const F32 exact = *scale > 0 ? load(row + e) / set1(*scale) : zero();
    float whole[lanes];
    store(whole, min(set1(127.0f), max(set1(-127.0f), round(exact))));
    for (std::int64_t i = e; i < features && i < e + lanes; ++i) to[i] = std::int8_t(whole[i - e]);
  }
}

// Writes the new rows of keys [first, end) to one of the caches. `room` holds a row of fp32.
template <class T, class C>
static void append_rows(const AttentionDecodeArgs& args, const TensorView& rows, const TensorView& cache,
                        const TensorView& scales, std::int64_t b, std::int64_t kv_head, std::int64_t length,
                        std::int64_t first, std::int64_t end, float* room) {
  const std::int64_t features = rows.size[3];
  const CacheRows<C> entries = cache_rows<C>(cache, kv_head);
  const CacheRows<float> entry_scales = cache_rows<float>(scales, kv_head);
  if (first < length) first = length;
  for_each_entry(args, b, first, end - first, [&](std::int64_t i, const CachePlace& place) {
    const T* from = static_cast<const T*>(rows.data) + b * rows.stride[0] + kv_head * rows.stride[1] +
                    (first + i - length) * rows.stride[2];
    copy_in(1, features, from, 0, rows.stride[3], room, 0);
    write_entry(features, room, entry(entries, place), is_int8<C> ? entry(entry_scales, place) : nullptr);
  });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
