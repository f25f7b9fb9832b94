// attention_decode: check, allocate, fill the arguments, call the kernel. The output follows query as attention's does.
// On the CPU lengths and block table are looked at before anything is written: they say which memory the kernel
// touches. On a CUDA device the kernel does without what is not in the cache, since no host waits for what is there.
#include "bigmodel/attention_decode.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "attention_inputs.h"
#include "call.h"
#include "cpu/cpu.h"
#include "direct.h"
#include "registration.h"
#include "run.h"

namespace bigmodel::binding {
namespace {

struct DecodeTensors {
  const Tensor &query, &key_cache, &value_cache, &cache_lengths;
  const OptionalTensor &block_table, &new_key, &new_value, &key_scales, &value_scales, &sinks;
};

std::int64_t index_at(const TensorView& view, std::int64_t i, std::int64_t j = 0) {
  const std::int64_t at = i * view.stride[0] + j * view.stride[1];
  return view.dtype == DType::int32 ? static_cast<const std::int32_t*>(view.data)[at]
                                    : static_cast<const std::int64_t*>(view.data)[at];
}

TensorView check_cache(const Call& call, const char* name, const Tensor& cache,
                       std::initializer_list<std::int64_t> shape) {
  const TensorView view =
      call.one_of({DType::float32, DType::bfloat16, DType::float16, DType::int8}, name, cache, shape);
  call.check(view.size[3] > 0, name, " has shape ", shape_text(Layout(cache).sizes),
             ", expected at least one element in its last dimension");
  call.check(view.stride[3] == 1 || view.size[3] == 1 || cache.numel() == 0, name,
             " has a last dimension that is not contiguous, expected rows of successive elements");
  return view;
}

// Scales of an int8 cache; none of any other.
TensorView check_scales(const Call& call, const char* name, const OptionalTensor& scales, const TensorView& cache) {
  const bool quantized = cache.dtype == DType::int8;
  call.check(quantized == scales.has_value(), name,
             quantized ? " is missing, expected scales of the int8 cache" : " is given, but the cache is not int8");
  return call.float32(name, scales, {cache.size[0], cache.size[1], cache.size[2]});
}

void check_caches(const Call& call, const DecodeTensors& tensors, AttentionDecodeArgs& args) {
  const std::int64_t batch = args.query.size[0], heads = args.query.size[1];
  const std::int64_t first_size = tensors.block_table ? any_size : batch;
  args.key_cache =
      check_cache(call, "key_cache", tensors.key_cache, {first_size, any_size, any_size, args.query.size[3]});
  const TensorView& key = args.key_cache;
  const std::int64_t kv_heads = key.size[1];
  call.check(kv_heads == 0 ? heads == 0 : heads % kv_heads == 0, "key_cache has ", kv_heads, " heads, query ", heads,
             ": query heads must be a multiple of key heads");
  args.value_cache =
      check_cache(call, "value_cache", tensors.value_cache, {key.size[0], kv_heads, key.size[2], any_size});
  call.check(key.dtype == args.value_cache.dtype, "value_cache has dtype ", dtype_name(tensors.value_cache),
             ", expected key_cache's, ", dtype_name(tensors.key_cache));
  args.key_scales = check_scales(call, "key_scales", tensors.key_scales, key);
  args.value_scales = check_scales(call, "value_scales", tensors.value_scales, args.value_cache);
  args.cache_lengths = call.one_of({DType::int32, DType::int64}, "cache_lengths", tensors.cache_lengths, {batch});
  if (!tensors.block_table) return;
  args.block_table = call.one_of({DType::int32, DType::int64}, "block_table", *tensors.block_table, {batch, any_size});
  call.check(key.size[2] > 0, "key_cache has pages of 0 keys, expected at least 1");
}

void check_new(const Call& call, const DecodeTensors& tensors, AttentionDecodeArgs& args) {
  call.check(tensors.new_key.has_value() == tensors.new_value.has_value(),
             "new_key and new_value: one is given without the other");
  if (!tensors.new_key) return;
  const std::int64_t batch = args.query.size[0], q_len = args.query.size[2], kv_heads = args.key_cache.size[1];
  args.new_key = call.tensor("new_key", tensors.new_key, {batch, kv_heads, q_len, args.query.size[3]});
  args.new_value = call.tensor("new_value", tensors.new_value, {batch, kv_heads, q_len, args.value_cache.size[3]});
  // The kernel writes to these.
  const auto written = [&](const char* name, TensorView& view, const Tensor& tensor) {
    call.check_writable(name, view);
    view.data = tensor.mutable_data_ptr();
  };
  written("key_cache", args.key_cache, tensors.key_cache);
  written("value_cache", args.value_cache, tensors.value_cache);
  if (tensors.key_scales) written("key_scales", args.key_scales, *tensors.key_scales);
  if (tensors.value_scales) written("value_scales", args.value_scales, *tensors.value_scales);
}

// Every key that is seen or written is in the cache. Returns the longest total, or on a device the capacity.
std::int64_t check_places(const Call& call, const AttentionDecodeArgs& args, bool appends) {
  const std::int64_t batch = args.query.size[0], q_len = args.query.size[2], page_size = args.key_cache.size[2];
  const bool paged = args.block_table.data != nullptr;
  const std::int64_t capacity = paged ? args.block_table.size[1] * page_size : page_size;
  if (call.on_cuda()) return capacity;
  const std::int64_t added = appends ? q_len : 0;
  std::int64_t longest = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t length = index_at(args.cache_lengths, b);
    call.check(length >= 0 && length <= capacity - added, "cache_lengths[", b, "] is ", length, " and the call adds ",
               added, ", expected 0 to ", capacity, " keys in all, the capacity");
    const std::int64_t total = length + added;
    longest = std::max(longest, total);
    if (!paged) continue;
    const std::int64_t first = args.window_left < 0 ? 0 : std::max<std::int64_t>(total - q_len - args.window_left, 0);
    for (std::int64_t page = first / page_size; page * page_size < total; ++page) {
      const std::int64_t at = index_at(args.block_table, b, page);
      call.check(at >= 0 && at < args.key_cache.size[0], "block_table[", b, ", ", page, "] is ", at, ", expected 0 to ",
                 args.key_cache.size[0] - 1, ", a page of the cache");
    }
  }
  return longest;
}

void check_options(const Call& call, AttentionDecodeArgs& args, std::optional<double> given_scale,
                   std::int64_t window_left, double softcap) {
  const double scale = given_scale.value_or(1.0 / std::sqrt(static_cast<double>(args.query.size[3])));
  call.check(std::isfinite(scale), "scale is ", scale, ", expected a finite number");
  args.scale = static_cast<float>(scale);
  call.check(window_left >= -1, "window_left is ", window_left, ", expected -1 (unbounded) or more");
  constexpr std::int64_t beyond_any_cache = std::int64_t(1) << 48;  // so that it may be added to a position
  args.window_left = window_left > beyond_any_cache ? -1 : window_left;
  call.check(std::isfinite(softcap) && softcap >= 0.0, "softcap is ", softcap,
             ", expected 0 (off) or a positive number");
  args.softcap = static_cast<float>(softcap);
}

std::tuple<Tensor, Tensor> attention_decode(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
                                            const Tensor& cache_lengths, const OptionalTensor& block_table,
                                            const OptionalTensor& new_key, const OptionalTensor& new_value,
                                            const OptionalTensor& key_scales, const OptionalTensor& value_scales,
                                            const OptionalTensor& sinks, std::optional<double> scale,
                                            std::int64_t window_left, double softcap) {
  const Call call("attention_decode", "query", query);
  const DecodeTensors tensors{query,   key_cache, value_cache, cache_lengths, block_table,
                              new_key, new_value, key_scales,  value_scales,  sinks};
  AttentionDecodeArgs args;
  args.query = call.tensor("query", query, {any_size, any_size, any_size, any_size});
  call.check(args.query.size[3] > 0, "query has head_dim 0, expected at least 1");
  check_caches(call, tensors, args);
  check_new(call, tensors, args);
  args.sinks = call.float32("sinks", sinks, {args.query.size[1]});
  check_options(call, args, scale, window_left, softcap);
  args.longest = check_places(call, args, new_key.has_value());

  const std::int64_t lse_sizes[] = {args.query.size[0], args.query.size[1], args.query.size[2]};
  Tensor output = empty_like_order(call, args.query, args.value_cache.size[3]);
  Tensor lse = call.empty(lse_sizes, DType::float32);
  args.output = tensor_view(output, call.dtype());
  args.lse = tensor_view(lse, DType::float32);
  if (args.query.size[0] > 0 && args.query.size[2] > 0 && args.key_cache.size[1] > 0) {
    run(call, cpu::kernels().attention_decode, args);
  }
  return {std::move(output), std::move(lse)};
}

}  // namespace

void direct::add_attention_decode(Functions& functions) {
  functions.add<&attention_decode>("attention_decode", {"scale", "window_left", "softcap"});
}

void register_attention_decode(Library& library) { library.impl("attention_decode", TORCH_BOX(&attention_decode)); }

}  // namespace bigmodel::binding
