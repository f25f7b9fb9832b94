// Which keys a query sees by its position alone: the causal diagonal and the sliding window as one band of keys.
#pragma once

#include "bigmodel/attention.h"
#include "cpu/isa/inline.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// Query i sees the keys d(i) - before <= j <= d(i) + after, where d(i) = i + offset.
struct Band {
  std::int64_t offset, before, after, kv_len;

  std::int64_t clamp(std::int64_t key) const { return key < 0 ? 0 : key > kv_len ? kv_len : key; }
  std::int64_t first_key(std::int64_t query) const { return clamp(query + offset - before); }
  std::int64_t end_key(std::int64_t query) const { return clamp(query + offset + after + 1); }
};

BIGMODEL_INLINE Band attention_band(const AttentionInputs& inputs) {
  const AttentionOptions& options = inputs.options;
  const std::int64_t q_len = inputs.query.size[2], kv_len = inputs.key.size[2];
  const std::int64_t unbounded = q_len + kv_len;  // further than any query is from any key
  Band band;
  band.kv_len = kv_len;
  band.offset = options.causal == Causal::top_left ? 0 : kv_len - q_len;
  band.before = options.window_left < 0 ? unbounded : options.window_left;
  band.after = options.window_right < 0 ? unbounded : options.window_right;
  if (options.causal != Causal::none) band.after = 0;
  return band;
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
