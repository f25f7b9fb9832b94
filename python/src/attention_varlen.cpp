// attention_varlen and attention_varlen_backward: check, allocate, fill the arguments, call the kernel. Outputs are
// laid out as attention's are: in the order of what they follow, tokens first or heads first.
#include "bigmodel/attention_varlen.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "attention_inputs.h"
#include "call.h"
#include "cpu/cpu.h"
#include "direct.h"
#include "registration.h"
#include "run.h"

namespace bigmodel::binding {
namespace {

// For the CPU kernels: where the sequences start, in host memory, and the order in which they are computed.
struct Starts {
  std::vector<std::int64_t> queries, keys, order;

  std::int64_t count() const { return static_cast<std::int64_t>(order.size()); }
  PackedSequences sequences() const { return {count(), queries.data(), keys.data(), order.data()}; }
};

TensorView check_starts(const Call& call, const char* name, const Tensor& tensor) {
  const TensorView view = call.one_of({DType::int32, DType::int64}, name, tensor, {any_size});
  call.check(view.size[0] > 0, name, " is empty, expected a 0 and the end of every sequence");
  return view;
}

std::vector<std::int64_t> read_starts(const Call& call, const char* name, const TensorView& view, std::int64_t tokens) {
  std::vector<std::int64_t> starts(view.size[0]);
  for (std::int64_t i = 0; i < view.size[0]; ++i) {
    starts[i] = view.dtype == DType::int32 ? static_cast<const std::int32_t*>(view.data)[i * view.stride[0]]
                                           : static_cast<const std::int64_t*>(view.data)[i * view.stride[0]];
    const std::int64_t before = i > 0 ? starts[i - 1] : 0;
    call.check(starts[i] >= before, name, "[", i, "] is ", starts[i], ", expected at least ", before,
               ", where the sequence before it starts");
  }
  call.check(starts.front() == 0 && starts.back() == tokens, name, " goes from ", starts.front(), " to ", starts.back(),
             ", expected 0 to ", tokens, ", the number of tokens");
  return starts;
}

std::int64_t longest(const std::vector<std::int64_t>& starts) {
  std::int64_t most = 0;
  for (std::size_t i = 1; i < starts.size(); ++i) most = std::max(most, starts[i] - starts[i - 1]);
  return most;
}

Starts read_starts(const Call& call, const TensorView& of_queries, const TensorView& of_keys, std::int64_t queries,
                   std::int64_t keys) {
  Starts starts{
      read_starts(call, "cu_seqlens_q", of_queries, queries), read_starts(call, "cu_seqlens_k", of_keys, keys), {}};
  starts.order.resize(starts.queries.size() - 1);
  std::iota(starts.order.begin(), starts.order.end(), 0);
  const auto work = [&](std::int64_t s) {
    return (starts.queries[s + 1] - starts.queries[s]) * (starts.keys[s + 1] - starts.keys[s]);
  };
  std::stable_sort(starts.order.begin(), starts.order.end(),
                   [&](std::int64_t a, std::int64_t b) { return work(a) > work(b); });
  return starts;
}

// [tokens, heads, features] as [1, heads, tokens, features].
TensorView heads_first(TensorView view) {
  TensorView result = view;
  const int from[] = {1, 0, 2};
  for (int dim = 1; dim < 4; ++dim) {
    result.size[dim] = view.size[from[dim - 1]];
    result.stride[dim] = view.stride[from[dim - 1]];
  }
  result.size[0] = 1;
  result.stride[0] = 0;
  return result;
}

// [heads, tokens] as [1, heads, tokens].
TensorView rows_first(TensorView view) {
  TensorView result = view;
  for (int dim = 1; dim < 3; ++dim) {
    result.size[dim] = view.size[dim - 1];
    result.stride[dim] = view.stride[dim - 1];
  }
  result.size[0] = 1;
  result.stride[0] = 0;
  return result;
}

// A fresh [tokens, heads, features], in memory as `like`, which is heads_first.
Tensor empty_tokens(const Call& call, const TensorView& like, std::int64_t features) {
  const std::int64_t heads = like.size[1], tokens = like.size[2];
  const std::int64_t sizes[] = {tokens, heads, features};
  const bool heads_outside = heads > 1 && tokens > 1 && like.stride[1] > like.stride[2];
  if (!heads_outside) return call.empty(sizes, call.dtype());
  const std::int64_t strides[] = {features, features * tokens, 1};
  return call.empty(sizes, strides, call.dtype());
}

struct CheckedVarlen {
  // Its shape: batch is the number of sequences, lengths are the longest ones, as far as the host can know.
  CheckedAttention attention;
  Starts starts;  // on a CPU
  std::int64_t queries, keys;
};

// The host does not wait for a device to tell it the numbers: kernels read them there. A mask's own size stands for the
// longest lengths, else no sequence is longer than all of them.
void keep_starts_on_device(const Call& call, const OptionalTensor& mask, CheckedVarlen& checked) {
  auto& [shape, inputs] = checked.attention;
  shape.q_len = checked.queries, shape.kv_len = checked.keys;
  call.check(shape.batch > 0 || (shape.q_len == 0 && shape.kv_len == 0),
             "cu_seqlens_q has no sequence, expected those of ", shape.q_len, " queries and ", shape.kv_len, " keys");
  if (!mask) return;
  const Layout layout(*mask);
  if (layout.sizes.size() == 4 && layout.sizes[2] != 1) shape.q_len = layout.sizes[2];
  if (layout.sizes.size() == 4 && layout.sizes[3] != 1) shape.kv_len = layout.sizes[3];
}

CheckedVarlen check_varlen(const Call& call, const AttentionTensors& tensors, const Tensor& cu_seqlens_q,
                           const Tensor& cu_seqlens_k, const AttentionKeywords& keywords) {
  CheckedVarlen checked;
  auto& [shape, inputs] = checked.attention;
  inputs.query = heads_first(call.tensor("query", tensors.query, {any_size, any_size, any_size}));
  shape.heads = inputs.query.size[1], checked.queries = inputs.query.size[2], shape.head_dim = inputs.query.size[3];
  call.check(shape.head_dim > 0, "query has head_dim 0, expected at least 1");
  inputs.key = heads_first(call.tensor("key", tensors.key, {any_size, any_size, shape.head_dim}));
  shape.kv_heads = inputs.key.size[1], checked.keys = inputs.key.size[2];
  const bool grouped = shape.kv_heads == 0 ? shape.heads == 0 : shape.heads % shape.kv_heads == 0;
  call.check(grouped, "key has ", shape.kv_heads, " heads, query ", shape.heads,
             ": query heads must be a multiple of key heads");
  inputs.value = heads_first(call.tensor("value", *tensors.value, {checked.keys, shape.kv_heads, any_size}));
  shape.value_dim = inputs.value.size[3];
  call.check(shape.value_dim > 0, "value has value_dim 0, expected at least 1");
  inputs.query_starts = check_starts(call, "cu_seqlens_q", cu_seqlens_q);
  inputs.key_starts = check_starts(call, "cu_seqlens_k", cu_seqlens_k);
  call.check(inputs.key_starts.size[0] == inputs.query_starts.size[0], "cu_seqlens_k has ", inputs.key_starts.size[0],
             " entries, expected cu_seqlens_q's ", inputs.query_starts.size[0]);
  shape.batch = inputs.query_starts.size[0] - 1;
  if (call.on_cuda()) {
    keep_starts_on_device(call, tensors.mask, checked);
  } else {
    checked.starts = read_starts(call, inputs.query_starts, inputs.key_starts, checked.queries, checked.keys);
    shape.q_len = longest(checked.starts.queries), shape.kv_len = longest(checked.starts.keys);
  }
  check_score_rules(call, tensors, keywords, checked.attention);
  return checked;
}

std::tuple<Tensor, Tensor> attention_varlen(const Tensor& query, const Tensor& key, const Tensor& value,
                                            const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                                            const OptionalTensor& mask, const OptionalTensor& alibi_slopes,
                                            const OptionalTensor& sinks, const OptionalTensor& dropout_seed,
                                            const std::string& causal, std::optional<double> scale,
                                            std::int64_t window_left, std::int64_t window_right, double softcap,
                                            double dropout_p) {
  const Call call("attention_varlen", "query", query);
  const CheckedVarlen checked =
      check_varlen(call, {query, key, &value, mask, alibi_slopes, &sinks, dropout_seed}, cu_seqlens_q, cu_seqlens_k,
                   {causal, scale, window_left, window_right, softcap, dropout_p});
  const auto& [shape, inputs] = checked.attention;
  Tensor output = empty_tokens(call, inputs.query, shape.value_dim);
  const std::int64_t lse_sizes[] = {shape.heads, checked.queries};
  Tensor lse = call.empty(lse_sizes, DType::float32);
  if (shape.batch > 0 && output.numel() > 0) {
    AttentionVarlenForwardArgs args;
    args.packed = {.inputs = inputs,
                   .output = heads_first(tensor_view(output, call.dtype())),
                   .lse = rows_first(tensor_view(lse, DType::float32))};
    args.sequences = checked.starts.sequences();
    run(call, cpu::kernels().attention_varlen_forward, args);
  }
  return {std::move(output), std::move(lse)};
}

enum GradientIndex { grad_query, grad_key, grad_value, grad_mask, grad_sinks, gradient_count };

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_varlen_backward(
    const OptionalTensor& grad_output, const OptionalTensor& grad_lse, const Tensor& query, const Tensor& key,
    const Tensor& value, const Tensor& output, const Tensor& lse, const Tensor& cu_seqlens_q,
    const Tensor& cu_seqlens_k, const OptionalTensor& mask, const OptionalTensor& alibi_slopes,
    const OptionalTensor& sinks, const OptionalTensor& dropout_seed, const std::string& causal,
    std::optional<double> scale, std::int64_t window_left, std::int64_t window_right, double softcap, double dropout_p,
    const std::vector<bool>& output_mask) {
  const Call call("attention_varlen_backward", "query", query);
  call.check_output_mask(output_mask, gradient_count);
  const CheckedVarlen checked =
      check_varlen(call, {query, key, &value, mask, alibi_slopes, &sinks, dropout_seed}, cu_seqlens_q, cu_seqlens_k,
                   {causal, scale, window_left, window_right, softcap, dropout_p});
  const auto& [shape, inputs] = checked.attention;
  AttentionVarlenBackwardArgs args;
  AttentionBackwardArgs& packed = args.packed;
  packed.inputs = inputs;
  packed.output = heads_first(call.tensor("output", output, {checked.queries, shape.heads, shape.value_dim}));
  packed.lse = rows_first(call.float32("lse", lse, {shape.heads, checked.queries}));
  if (grad_output) {
    packed.grad_output =
        heads_first(call.tensor("grad_output", grad_output, {checked.queries, shape.heads, shape.value_dim}));
  }
  if (grad_lse) packed.grad_lse = rows_first(call.float32("grad_lse", grad_lse, {shape.heads, checked.queries}));

  const std::int64_t sinks_size[] = {shape.heads};
  const auto wants = [&](GradientIndex index, bool exists = true) { return output_mask[index] && exists; };
  const bool wants_mask = wants(grad_mask, mask_has_gradient(mask, inputs)),
             wants_sinks = wants(grad_sinks, sinks.has_value());
  Tensor of_query = wants(grad_query) ? empty_tokens(call, inputs.query, shape.head_dim) : call.nothing();
  Tensor of_key = wants(grad_key) ? empty_tokens(call, inputs.key, shape.head_dim) : call.nothing();
  Tensor of_value = wants(grad_value) ? empty_tokens(call, inputs.value, shape.value_dim) : call.nothing();
  Tensor of_mask = wants_mask ? call.empty(Layout(*mask).sizes, inputs.mask.dtype) : call.nothing();
  Tensor of_sinks = wants_sinks ? call.empty(sinks_size, DType::float32) : call.nothing();
  if (shape.batch > 0 && shape.heads > 0) {
    if (wants(grad_query)) packed.grad_query = heads_first(tensor_view(of_query, call.dtype()));
    if (wants(grad_key)) packed.grad_key = heads_first(tensor_view(of_key, call.dtype()));
    if (wants(grad_value)) packed.grad_value = heads_first(tensor_view(of_value, call.dtype()));
    if (wants_mask) packed.grad_mask = tensor_view(of_mask, inputs.mask.dtype);
    if (wants_sinks) packed.grad_sinks = tensor_view(of_sinks, DType::float32);
    args.sequences = checked.starts.sequences();
    run(call, cpu::kernels().attention_varlen_backward, args);
  } else {
    for (Tensor* grad : {&of_query, &of_key, &of_value, &of_mask, &of_sinks}) torch::stable::zero_(*grad);
  }
  return {std::move(of_query), std::move(of_key), std::move(of_value), std::move(of_mask), std::move(of_sinks)};
}

}  // namespace

void direct::add_attention_varlen(Functions& functions) {
  functions.add<&attention_varlen>("attention_varlen",
                                   {"causal", "scale", "window_left", "window_right", "softcap", "dropout_p"});
  functions.add<&attention_varlen_backward>(
      "attention_varlen_backward",
      {"causal", "scale", "window_left", "window_right", "softcap", "dropout_p", "output_mask"});
}

void register_attention_varlen(Library& library) {
  library.impl("attention_varlen", TORCH_BOX(&attention_varlen));
  library.impl("attention_varlen_backward", TORCH_BOX(&attention_varlen_backward));
}

}  // namespace bigmodel::binding
