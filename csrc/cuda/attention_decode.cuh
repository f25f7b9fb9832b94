// A cache of keys or values as decoding's kernels see it, and where its entries are. Lengths and block tables are read
// on the device, for which no host waits: what is not in the cache has no place, and is found to have none.
#pragma once

#include <algorithm>
#include <cstdint>

#include "bigmodel/attention_decode.h"
#include "cuda/cuda.h"
#include "cuda/element.cuh"

namespace bigmodel::cuda {

__device__ inline float to_float(std::int8_t x) { return static_cast<float>(x); }

// Calls body with the element type of a cache.
template <class Body>
void with_cache_dtype(DType dtype, Body body) {
  if (dtype == DType::int8) return body(std::int8_t{});
  with_dtype(dtype, body);
}

// Integers [rows, columns] of 32 or 64 bits; absent when data is null.
struct Indices {
  const void* data = nullptr;
  bool wide = false;
  std::int64_t row = 0, column = 0;  // strides

  explicit Indices(const TensorView& view)
      : data(view.data), wide(view.dtype == DType::int64), row(view.stride[0]), column(view.stride[1]) {}

  __device__ std::int64_t at(int r, int c = 0) const {
    const std::int64_t offset = r * row + c * column;
    return wide ? static_cast<const std::int64_t*>(data)[offset] : static_cast<const std::int32_t*>(data)[offset];
  }
};

struct Entry {
  std::int64_t page;
  int slot;
  bool exists;
};

struct Places {
  Indices lengths, table;
  std::int64_t pages;
  int page_size, capacity, q_len, added;  // added: keys of each sequence that the call appends

  explicit Places(const AttentionDecodeArgs& args)
      : lengths(args.cache_lengths),
        table(args.block_table),
        pages(args.key_cache.size[0]),
        q_len(static_cast<int>(args.query.size[2])),
        added(args.new_key.data ? q_len : 0) {
    const std::int64_t slots = args.key_cache.size[2];
    const std::int64_t all = args.block_table.data ? args.block_table.size[1] * slots : slots;
    // Kernels add a few such numbers in 32 bits.
    if (all + args.query.size[2] > (1 << 28)) throw Error("more than 2^28 keys of one sequence are not supported");
    page_size = static_cast<int>(slots);
    capacity = static_cast<int>(all);
  }

  // Keys of a sequence with those of this call, as far as it matters how many there are: from none to so many that no
  // query's own key is in the cache.
  __device__ int total(int batch) const {
    const std::int64_t keys = lengths.at(batch) + added, most = capacity + q_len;
    return static_cast<int>(keys < 0 ? 0 : keys < most ? keys : most);
  }
  __device__ Entry find(int batch, int position) const {
    if (position < 0 || position >= capacity) return {0, 0, false};
    if (!table.data) return {batch, position, true};
    const std::int64_t page = table.at(batch, position / page_size);
    return {page, position % page_size, page >= 0 && page < pages};
  }
};

// Entries [batch or pages, kv_heads, slots, features] and, of int8, their scales.
template <class C>
struct Cache {
  C* data;
  std::int64_t page, head, slot;  // strides
  float* scales;
  std::int64_t scale_page, scale_head, scale_slot;
  int features;

  Cache(const TensorView& entries, const TensorView& scale)
      : data(static_cast<C*>(entries.data)),
        page(entries.stride[0]),
        head(entries.stride[1]),
        slot(entries.stride[2]),
        scales(static_cast<float*>(scale.data)),
        scale_page(scale.stride[0]),
        scale_head(scale.stride[1]),
        scale_slot(scale.stride[2]),
        features(static_cast<int>(entries.size[3])) {}

  __device__ std::int64_t at(const Entry& entry, int kv_head) const {
    return entry.page * page + kv_head * head + entry.slot * slot;
  }
  __device__ float& scale(const Entry& entry, int kv_head) const {
    return scales[entry.page * scale_page + kv_head * scale_head + entry.slot * scale_slot];
  }
};

// Writes the new keys and values to the caches.
void append(const AttentionDecodeArgs& args, const Place& place);

}  // namespace bigmodel::cuda
