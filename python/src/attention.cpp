// attention and attention_backward: check, allocate, fill the arguments, call the kernel.
//
// The order of outputs. `output` and `grad_query` follow query, `grad_key` follows key, `grad_value` follows value:
//   if x.size(1) > 1 and x.size(2) > 1 and x.stride(1) < x.stride(2), x is taken for a transposed view of
//   [batch, length, heads, features], and what follows it is allocated as a contiguous [batch, length, heads, features]
//   and returned as its transpose(1, 2); otherwise it is a contiguous [batch, heads, length, features].
// The fakes in bigmodel_kernels/ops mirror this rule.
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <tuple>
#include <vector>

#include "attention_inputs.h"
#include "cpu/cpu.h"
#include "direct.h"
#include "registration.h"
#include "run.h"

namespace bigmodel::binding {
namespace {

// No keys: the output is 0, and the log-sum-exp is over the sink alone, or over nothing.
void forward_without_keys(Tensor& output, Tensor& lse, const OptionalTensor& sinks) {
  torch::stable::zero_(output);
  if (sinks) {
    torch::stable::copy_(lse, torch::stable::unsqueeze(*sinks, -1));
  } else {
    torch::stable::fill_(lse, -std::numeric_limits<double>::infinity());
  }
}

std::tuple<Tensor, Tensor> attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                     const OptionalTensor& mask, const OptionalTensor& alibi_slopes,
                                     const OptionalTensor& sinks, const OptionalTensor& dropout_seed,
                                     const std::string& causal, std::optional<double> scale, std::int64_t window_left,
                                     std::int64_t window_right, double softcap, double dropout_p) {
  const Call call("attention", "query", query);
  const auto [shape, inputs] = check_attention(call, {query, key, &value, mask, alibi_slopes, &sinks, dropout_seed},
                                               {causal, scale, window_left, window_right, softcap, dropout_p});
  Tensor output = empty_like_order(call, inputs.query, shape.value_dim);
  const std::int64_t lse_sizes[] = {shape.batch, shape.heads, shape.q_len};
  Tensor lse = call.empty(lse_sizes, DType::float32);
  if (shape.has_queries() && shape.kv_len == 0) {
    forward_without_keys(output, lse, sinks);
  } else if (shape.has_queries()) {
    AttentionForwardArgs args{
        .inputs = inputs, .output = tensor_view(output, call.dtype()), .lse = tensor_view(lse, DType::float32)};
    run(call, cpu::kernels().attention_forward, args);
  }
  return {std::move(output), std::move(lse)};
}

struct AttentionGradients {
  Tensor query, key, value, mask, sinks;
};

// Which gradients are computed: those asked for that exist.
enum GradientIndex { grad_query, grad_key, grad_value, grad_mask, grad_sinks, gradient_count };

AttentionGradients allocate_gradients(const Call& call, const CheckedAttention& checked, const OptionalTensor& mask,
                                      const std::vector<bool>& wanted) {
  const auto& [shape, inputs] = checked;
  const std::int64_t sinks_size[] = {shape.heads};
  return {
      wanted[grad_query] ? empty_like_order(call, inputs.query, shape.head_dim) : call.nothing(),
      wanted[grad_key] ? empty_like_order(call, inputs.key, shape.head_dim) : call.nothing(),
      wanted[grad_value] ? empty_like_order(call, inputs.value, shape.value_dim) : call.nothing(),
      wanted[grad_mask] ? call.empty(Layout(*mask).sizes, inputs.mask.dtype) : call.nothing(),
      wanted[grad_sinks] ? call.empty(sinks_size, DType::float32) : call.nothing(),
  };
}

// Without queries or without keys there is no probability, so every gradient is 0, except the sinks' through the lse:
// without keys lse[i] is the sink itself.
void backward_without_scores(AttentionGradients& grads, const AttentionShape& shape, bool sinks_wanted,
                             const OptionalTensor& grad_lse) {
  for (Tensor* grad : {&grads.query, &grads.key, &grads.value, &grads.mask, &grads.sinks}) torch::stable::zero_(*grad);
  if (sinks_wanted && grad_lse && shape.has_queries()) {
    const std::int64_t over[] = {0, 2};
    torch::stable::copy_(grads.sinks, torch::stable::sum(*grad_lse, over));
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    const OptionalTensor& grad_output, const OptionalTensor& grad_lse, const Tensor& query, const Tensor& key,
    const Tensor& value, const Tensor& output, const Tensor& lse, const OptionalTensor& mask,
    const OptionalTensor& alibi_slopes, const OptionalTensor& sinks, const OptionalTensor& dropout_seed,
    const std::string& causal, std::optional<double> scale, std::int64_t window_left, std::int64_t window_right,
    double softcap, double dropout_p, const std::vector<bool>& output_mask) {
  const Call call("attention_backward", "query", query);
  call.check_output_mask(output_mask, gradient_count);
  const CheckedAttention checked = check_attention(call, {query, key, &value, mask, alibi_slopes, &sinks, dropout_seed},
                                                   {causal, scale, window_left, window_right, softcap, dropout_p});
  const auto& [shape, inputs] = checked;
  const auto output_shape = {shape.batch, shape.heads, shape.q_len, shape.value_dim};
  const auto lse_shape = {shape.batch, shape.heads, shape.q_len};
  AttentionBackwardArgs args{.inputs = inputs,
                             .output = call.tensor("output", output, output_shape),
                             .lse = call.float32("lse", lse, lse_shape),
                             .grad_output = call.tensor("grad_output", grad_output, output_shape),
                             .grad_lse = call.float32("grad_lse", grad_lse, lse_shape)};
  std::vector<bool> wanted = output_mask;
  wanted[grad_mask] = wanted[grad_mask] && mask_has_gradient(mask, inputs);
  wanted[grad_sinks] = wanted[grad_sinks] && sinks.has_value();
  AttentionGradients grads = allocate_gradients(call, checked, mask, wanted);
  if (!shape.has_queries() || shape.kv_len == 0) {
    backward_without_scores(grads, shape, wanted[grad_sinks], grad_lse);
  } else {
    if (wanted[grad_query]) args.grad_query = tensor_view(grads.query, call.dtype());
    if (wanted[grad_key]) args.grad_key = tensor_view(grads.key, call.dtype());
    if (wanted[grad_value]) args.grad_value = tensor_view(grads.value, call.dtype());
    if (wanted[grad_mask]) args.grad_mask = tensor_view(grads.mask, inputs.mask.dtype);
    if (wanted[grad_sinks]) args.grad_sinks = tensor_view(grads.sinks, DType::float32);
    run(call, cpu::kernels().attention_backward, args);
  }
  return {grads.query, grads.key, grads.value, grads.mask, grads.sinks};
}

}  // namespace

void direct::add_attention(Functions& functions) {
  functions.add<&attention>("attention", {"causal", "scale", "window_left", "window_right", "softcap", "dropout_p"});
  functions.add<&attention_backward>(
      "attention_backward", {"causal", "scale", "window_left", "window_right", "softcap", "dropout_p", "output_mask"});
}

void register_attention(Library& library) {
  library.impl("attention", TORCH_BOX(&attention));
  library.impl("attention_backward", TORCH_BOX(&attention_backward));
}

}  // namespace bigmodel::binding
