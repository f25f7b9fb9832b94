// What attention's kernels read, as they take it: pointers of a known type, 32-bit sizes, 64-bit strides; and the band
// of keys that a query sees by its position alone. Of packed sequences a block makes itself the inputs of one.
#pragma once

#include <cstdint>
#include <type_traits>

#include "bigmodel/attention.h"
#include "cuda/attention_sequences.cuh"
#include "cuda/cuda.h"
#include "cuda/element.cuh"
#include "cuda/pack_rows.h"
#include "cuda/philox.cuh"

namespace bigmodel::cuda {

// [batch, heads, rows, columns] in device memory; absent when data is null.
template <class T>
struct View {
  T* data = nullptr;
  std::int64_t batch = 0, head = 0, row = 0, column = 0;  // strides

  View() = default;
  explicit View(const TensorView& view)
      : data(static_cast<T*>(view.data)),
        batch(view.size[0] == 1 ? 0 : view.stride[0]),  // packed sequences are one batch, whichever is asked for
        head(view.stride[1]),
        row(view.stride[2]),
        column(view.stride[3]) {}

  // That begins with row r, if there is one.
  __device__ View from_row(int r) const {
    View result = *this;
    if (data) result.data += r * row;
    return result;
  }
  __device__ T* at(int b, int h) const { return data + b * batch + h * head; }
  __device__ T* at(int b, int h, int r) const { return at(b, h) + r * row; }
};

// Query i sees the keys d(i) - before <= j <= d(i) + after, where d(i) = i + offset.
struct Band {
  int offset, before, after, kv_len;
  bool from_start;  // offset is 0

  __host__ __device__ void set_lengths(int queries, int keys) {
    kv_len = keys;
    offset = from_start ? 0 : keys - queries;
  }
  __host__ __device__ int clamp(int key) const { return key < 0 ? 0 : key > kv_len ? kv_len : key; }
  __host__ __device__ int first_key(int query) const { return clamp(query + offset - before); }
  __host__ __device__ int end_key(int query) const { return clamp(query + offset + after + 1); }
  // The queries that see a key: [first_query, end_query) of q_len.
  __host__ __device__ int first_query(int key) const { return key - offset - after; }
  __host__ __device__ int end_query(int key) const { return key - offset + before + 1; }

  Band() = default;
  explicit Band(const AttentionInputs& inputs) {
    const AttentionOptions& options = inputs.options;
    const std::int64_t q_len = inputs.query.size[2], keys = inputs.key.size[2];
    // Kernels add a few such distances in 32 bits.
    if (q_len + keys > (1 << 28)) throw Error("more than 2^28 queries and keys in one head are not supported");
    const auto unbounded = static_cast<int>(q_len + keys);
    from_start = options.causal == Causal::top_left;
    set_lengths(static_cast<int>(q_len), static_cast<int>(keys));
    before = options.window_left < 0 ? unbounded : static_cast<int>(options.window_left);
    after = options.window_right < 0 ? unbounded : static_cast<int>(options.window_right);
    if (options.causal != Causal::none) after = 0;
  }
};

// From products to scores, apart from the band.
struct ScoreRules {
  enum class Mask { none, boolean, wide, own };

  float scale, softcap;
  const float* slopes;  // ALiBi's, [batch, heads]
  std::int64_t slope_batch, slope_head;
  Mask mask_kind;
  const void* mask;
  std::int64_t mask_batch, mask_head, mask_query, mask_key;  // strides
  DropoutRule dropout;

  ScoreRules() = default;
  explicit ScoreRules(const AttentionInputs& inputs)
      : scale(inputs.options.scale),
        softcap(inputs.options.softcap),
        slopes(static_cast<const float*>(inputs.alibi_slopes.data)),
        slope_batch(inputs.alibi_slopes.stride[0]),
        slope_head(inputs.alibi_slopes.stride[1]),
        mask_kind(!inputs.mask.data                     ? Mask::none
                  : inputs.mask.dtype == DType::boolean ? Mask::boolean
                  : inputs.mask.dtype == DType::float32 ? Mask::wide
                                                        : Mask::own),
        mask(inputs.mask.data),
        mask_batch(inputs.mask.stride[0]),
        mask_head(inputs.mask.stride[1]),
        mask_query(inputs.mask.stride[2]),
        mask_key(inputs.mask.stride[3]),
        dropout(inputs.options.dropout) {}

  // Whether scores are products times a positive scale, and probabilities are not dropped: the softmax then scales by
  // itself.
  bool plain() const {
    return scale > 0x1p-100f && softcap == 0 && !slopes && mask_kind == Mask::none && !dropout.seed;
  }

  __device__ float slope(int b, int h) const { return slopes ? slopes[b * slope_batch + h * slope_head] : 0.0f; }
  __device__ std::int64_t mask_row(int b, int h, int query) const {
    return b * mask_batch + h * mask_head + query * mask_query;
  }
};

template <class T>
struct AttentionTensors {
  View<const T> query, key, value;
  int batch, heads, kv_heads, group, q_len, kv_len, head_dim, value_dim;
  Band band;
  ScoreRules rules;
  const float* sinks;
  std::int64_t sink_stride;
  Starts query_starts, key_starts;
  int queries;  // of one head, in all sequences where they are packed
  int first_query = 0, first_key = 0;

  explicit AttentionTensors(const AttentionInputs& inputs)
      : query(inputs.query),
        key(inputs.key),
        value(inputs.value),
        batch(static_cast<int>(inputs.query.size[0])),
        heads(static_cast<int>(inputs.query.size[1])),
        kv_heads(static_cast<int>(inputs.key.size[1])),
        group(heads / kv_heads),
        q_len(static_cast<int>(inputs.query.size[2])),
        kv_len(static_cast<int>(inputs.key.size[2])),
        head_dim(static_cast<int>(inputs.query.size[3])),
        value_dim(static_cast<int>(inputs.value.size[3])),
        band(inputs),
        rules(inputs),
        sinks(static_cast<const float*>(inputs.sinks.data)),
        sink_stride(inputs.sinks.stride[0]),
        query_starts(inputs.query_starts, inputs.query.size[2]),
        key_starts(inputs.key_starts, inputs.key.size[2]),
        queries(q_len) {}

  // Of packed sequences the lengths become those of one, and its first query and key the first ones.
  __device__ void choose_sequence(int s) {
    if (query_starts.data) {
      const int query_start = query_starts[s], key_start = key_starts[s];
      q_len = agreed(max(query_starts[s + 1] - query_start, 0));
      kv_len = agreed(max(key_starts[s + 1] - key_start, 0));
      first_query = agreed(query_start);
      first_key = agreed(key_start);
      query = query.from_row(first_query);
      key = key.from_row(first_key);
      value = value.from_row(first_key);
    }
    band.set_lengths(q_len, kv_len);  // always, so that these take no registers of their own
  }
  // The number, within its sequence, of a tile of `size` rows along query_starts or key_starts, `each` rows for a
  // token. Of packed sequences b becomes its sequence, and this what choose_sequence makes of it.
  __device__ int enter_tile(const Starts& starts, int tile, int size, int& b, int each = 1) {
    SequenceTile found{b, tile};
    if (starts.data) found = starts.find(tile, size, each);
    b = found.sequence;
    choose_sequence(b);
    return found.number;
  }
  // Of all rows of queries, [batch, heads, q_len], or [heads, queries] where sequences are packed.
  __device__ std::int64_t row_of(int b, int h, int query) const {
    const std::int64_t head = query_starts.data ? h : std::int64_t(b) * heads + h;
    return head * queries + first_query + query;
  }
};

// The inputs as the tensor-core kernels can copy them. place null: only the memory is counted.
inline AttentionInputs packed_inputs(const AttentionInputs& inputs, Workspace& workspace, const Place* place) {
  AttentionInputs packed = inputs;
  packed.query = packed_rows(inputs.query, workspace, place);
  packed.key = packed_rows(inputs.key, workspace, place);
  packed.value = packed_rows(inputs.value, workspace, place);
  return packed;
}

// Calls body with the element type, fp32 left out.
template <class Body>
void with_half_dtype(DType dtype, Body body) {
  if (dtype == DType::float16) {
    body(half{});
  } else {
    body(bf16{});
  }
}

// Of the kernels that use tensor cores. Larger heads in TF32 would need more shared memory than most devices have.
template <class T>
inline constexpr int largest_head = sizeof(T) == 2 ? 256 : 128;

inline int head_size(const AttentionInputs& inputs) {
  const std::int64_t head_dim = inputs.query.size[3], value_dim = inputs.value.size[3];
  return static_cast<int>(head_dim > value_dim ? head_dim : value_dim);
}

// Whether the kernels that use tensor cores take a call.
inline bool uses_tiles(const AttentionInputs& inputs, const Place& place) {
  const bool exact = inputs.query.dtype == DType::float32;
  return exact ? place.tf32 && head_size(inputs) <= largest_head<tf32> : head_size(inputs) <= largest_head<half>;
}

// Calls body with what those kernels multiply.
template <class Body>
void with_tile_type(DType dtype, Body body) {
  if (dtype == DType::float32) return body(tf32{});
  with_half_dtype(dtype, body);
}

// Calls body with the smallest compiled head size that holds `features` of at most largest_head.
template <class T, class Body>
void with_head_size(int features, Body body) {
  if (features <= 32) return body(std::integral_constant<int, 32>{});
  if (features <= 64) return body(std::integral_constant<int, 64>{});
  if (features <= 96) return body(std::integral_constant<int, 96>{});
  if constexpr (largest_head<T> == 128) {
    return body(std::integral_constant<int, 128>{});
  } else {
    if (features <= 128) return body(std::integral_constant<int, 128>{});
    if (features <= 192) return body(std::integral_constant<int, 192>{});
    return body(std::integral_constant<int, 256>{});
  }
}

}  // namespace bigmodel::cuda
