// attention_weights and attention_weights_backward: check, allocate, fill the arguments, call the kernel. Gradients of
// query and key are ordered as attention.cpp says. And attention with its weights, which is not an op: where both are
// wanted without a gradient, one kernel on the CPU takes the place of two ops.
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "attention_inputs.h"
#include "cpu/cpu.h"
#include "direct.h"
#include "registration.h"
#include "run.h"

namespace bigmodel::binding {
namespace {

Tensor attention_weights(const Tensor& query, const Tensor& key, const Tensor& lse, const OptionalTensor& mask,
                         const OptionalTensor& alibi_slopes, const OptionalTensor& dropout_seed,
                         const std::string& causal, std::optional<double> scale, std::int64_t window_left,
                         std::int64_t window_right, double softcap, double dropout_p, bool average_heads) {
  const Call call("attention_weights", "query", query);
  const auto [shape, inputs] = check_attention(call, {query, key, nullptr, mask, alibi_slopes, nullptr, dropout_seed},
                                               {causal, scale, window_left, window_right, softcap, dropout_p});
  AttentionWeightsForwardArgs args{.inputs = inputs,
                                   .lse = call.float32("lse", lse, {shape.batch, shape.heads, shape.q_len}),
                                   .average_heads = average_heads};
  const std::int64_t sizes[] = {shape.batch, average_heads ? 1 : shape.heads, shape.q_len, shape.kv_len};
  if (!shape.has_queries() || shape.kv_len == 0) return call.zeros(sizes, call.dtype());
  Tensor weights = call.empty(sizes, call.dtype());
  args.weights = tensor_view(weights, call.dtype());
  run(call, cpu::kernels().attention_weights_forward, args);
  return weights;
}

std::tuple<Tensor, Tensor> attention_with_weights(const Tensor& query, const Tensor& key, const Tensor& value,
                                                  const OptionalTensor& mask, const std::string& causal,
                                                  bool average_heads) {
  const Call call("attention_with_weights", "query", query);
  const OptionalTensor none;
  const auto [shape, inputs] =
      check_attention(call, {query, key, &value, mask, none, &none, none}, {causal, {}, -1, -1, 0.0, 0.0});
  call.check(shape.has_queries() && shape.kv_len > 0, "there are no scores");
  const std::int64_t lse_sizes[] = {shape.batch, shape.heads, shape.q_len};
  const std::int64_t sizes[] = {shape.batch, average_heads ? 1 : shape.heads, shape.q_len, shape.kv_len};
  Tensor output = empty_like_order(call, inputs.query, shape.value_dim), weights = call.empty(sizes, call.dtype());
  const Tensor lse = call.empty(lse_sizes, DType::float32);
  AttentionWithWeightsArgs args{.inputs = inputs,
                                .output = tensor_view(output, call.dtype()),
                                .lse = tensor_view(lse, DType::float32),
                                .weights = tensor_view(weights, call.dtype()),
                                .average_heads = average_heads};
  run(call, cpu::kernels().attention_with_weights, args);
  return {std::move(output), std::move(weights)};
}

enum GradientIndex { grad_query, grad_key, grad_lse, grad_mask };

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_weights_backward(
    const Tensor& grad_weights, const Tensor& query, const Tensor& key, const Tensor& lse, const OptionalTensor& mask,
    const OptionalTensor& alibi_slopes, const OptionalTensor& dropout_seed, const std::string& causal,
    std::optional<double> scale, std::int64_t window_left, std::int64_t window_right, double softcap, double dropout_p,
    bool average_heads, const std::vector<bool>& output_mask) {
  const Call call("attention_weights_backward", "query", query);
  call.check_output_mask(output_mask, 4);
  const auto [shape, inputs] = check_attention(call, {query, key, nullptr, mask, alibi_slopes, nullptr, dropout_seed},
                                               {causal, scale, window_left, window_right, softcap, dropout_p});
  const std::int64_t lse_sizes[] = {shape.batch, shape.heads, shape.q_len};
  AttentionWeightsBackwardArgs args{
      .inputs = inputs,
      .lse = call.float32("lse", lse, {shape.batch, shape.heads, shape.q_len}),
      .grad_weights = call.tensor("grad_weights", grad_weights,
                                  {shape.batch, average_heads ? 1 : shape.heads, shape.q_len, shape.kv_len}),
      .average_heads = average_heads};
  const bool mask_wanted = output_mask[grad_mask] && mask_has_gradient(mask, inputs);
  Tensor query_grad = output_mask[grad_query] ? empty_like_order(call, inputs.query, shape.head_dim) : call.nothing();
  Tensor key_grad = output_mask[grad_key] ? empty_like_order(call, inputs.key, shape.head_dim) : call.nothing();
  Tensor lse_grad = output_mask[grad_lse] ? call.empty(lse_sizes, DType::float32) : call.nothing();
  Tensor mask_grad = mask_wanted ? call.empty(Layout(*mask).sizes, inputs.mask.dtype) : call.nothing();
  if (!shape.has_queries() || shape.kv_len == 0) {
    for (Tensor* grad : {&query_grad, &key_grad, &lse_grad, &mask_grad}) torch::stable::zero_(*grad);
  } else {
    if (output_mask[grad_query]) args.grad_query = tensor_view(query_grad, call.dtype());
    if (output_mask[grad_key]) args.grad_key = tensor_view(key_grad, call.dtype());
    if (output_mask[grad_lse]) args.grad_lse = tensor_view(lse_grad, DType::float32);
    if (mask_wanted) args.grad_mask = tensor_view(mask_grad, inputs.mask.dtype);
    run(call, cpu::kernels().attention_weights_backward, args);
  }
  return {std::move(query_grad), std::move(key_grad), std::move(lse_grad), std::move(mask_grad)};
}

}  // namespace

void direct::add_attention_weights(Functions& functions) {
  functions.add<&attention_weights>(
      "attention_weights", {"causal", "scale", "window_left", "window_right", "softcap", "dropout_p", "average_heads"});
  functions.add<&attention_with_weights>("attention_with_weights", {"causal", "average_heads"});
  functions.add<&attention_weights_backward>(
      "attention_weights_backward",
      {"causal", "scale", "window_left", "window_right", "softcap", "dropout_p", "average_heads", "output_mask"});
}

void register_attention_weights(Library& library) {
  library.impl("attention_weights", TORCH_BOX(&attention_weights));
  library.impl("attention_weights_backward", TORCH_BOX(&attention_weights_backward));
}

}  // namespace bigmodel::binding
