// Attention of a few new queries over a cache of keys and values: the contract shared by every backend.
//
// Sequence b has total[b] = cache_lengths[b] keys, or cache_lengths[b] + q_len where new keys and values are given,
// which are first written to the cache at the positions cache_lengths[b] ... total[b] - 1. The queries are the last
// q_len positions: query i is at d(i) = total[b] - q_len + i and sees the keys d(i) - window_left <= j <= d(i). Scores,
// softcap, sinks, lse and output are attention.h's; a query that sees no key gives output 0, lse -inf (or the sink).
//
// Caches are [batch, kv_heads, capacity, dim] or, with a block table, pages [pages, kv_heads, page_size, dim]: key j of
// sequence b is then entry j % page_size of page block_table[b, j / page_size]. Entries from total[b] on are not read,
// nor are the block table's that no key below total[b] needs.
//
// int8 caches: an entry is its integers times its scale. A new row x is written as scale = max|x| / 127 in fp32 and
// round(x / scale), half to even, within -127 ... 127 (all 0 where the scale is 0).
#pragma once

#include <cstdint>

#include "bigmodel/tensor.h"

namespace bigmodel {

struct AttentionDecodeArgs {
  TensorView query;                   // [batch, heads, q_len, head_dim], any strides
  TensorView key_cache, value_cache;  // as above, dims head_dim and value_dim; last stride 1; one dtype of fp32, bf16,
                                      // fp16 and int8, whatever the query's
  TensorView key_scales, value_scales;  // of int8 caches: fp32, the caches' shapes without their last dimension
  TensorView cache_lengths;             // [batch], int32 or int64
  TensorView block_table;               // [batch, most_pages], int32 or int64; absent: contiguous caches
  TensorView new_key, new_value;  // [batch, kv_heads, q_len, dim], the query's dtype, any strides; both or neither
  TensorView sinks;               // [heads], fp32
  std::int64_t longest = 0;       // no total is larger
  std::int64_t window_left = -1;  // -1: unbounded
  float scale = 1.0f;
  float softcap = 0.0f;  // 0: off
  TensorView output;     // [batch, heads, q_len, value_dim], the query's dtype, last stride 1
  TensorView lse;        // [batch, heads, q_len], fp32, contiguous
  void* workspace = nullptr;
};

}  // namespace bigmodel
