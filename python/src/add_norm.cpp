// add_norm and add_norm_backward: check, allocate, fill the arguments, call the kernel. sum and normed have the input's
// shape, mean and rstd the input's without its last dimension.
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "bigmodel/add_norm.h"
#include "call.h"
#include "cpu/cpu.h"
#include "direct.h"
#include "layer_parts.h"
#include "registration.h"
#include "run.h"

namespace bigmodel::binding {
namespace {

NormKind kind_named(const Call& call, const std::string& name) {
  if (name == "layer") return NormKind::layer;
  if (name == "rms") return NormKind::rms;
  call.fail("kind is '", name, "', expected 'layer' or 'rms'");
}

TensorView check_input(const Call& call, const char* name, const Operand& input, OptionalTensor& copy) {
  TensorView view = call.rows(name, input, any_size, copy);
  call.check(view.size[1] > 0, name, " has shape ", shape_text(input.layout().sizes),
             ", expected at least one element in its last dimension");
  return view;
}

// One number per row, seen as [rows].
TensorView per_row(const Tensor& tensor, std::int64_t rows) {
  TensorView view;
  view.data = const_cast<void*>(tensor.const_data_ptr());
  view.size[0] = rows;
  view.stride[0] = 1;
  return view;
}

// The normed rows; the sum where there is a residual, and the statistics, the mean of LayerNorm only, where they are
// wanted.
struct Outputs {
  OptionalTensor sum, normed, mean, rstd;
};

Outputs forward(const Call& call, const Operand& input, const OptionalOperand& residual, const OptionalOperand& weight,
                const OptionalOperand& bias, const std::string& kind, double eps, bool statistics) {
  OptionalTensor input_copy, residual_copy;
  AddNormForwardArgs args;
  args.input = check_input(call, "input", input, input_copy);
  const Sizes sizes = input.layout().sizes;
  if (residual) args.residual = call.rows("residual", *residual, sizes, residual_copy);
  const std::int64_t rows = args.input.size[0], width = args.input.size[1];
  args.weight = call.tensor_or_float32("weight", weight, {width});
  args.bias = call.tensor_or_float32("bias", bias, {width});
  call.check(!weight || !bias || args.weight.dtype == args.bias.dtype, "weight and bias have different dtypes");
  args.kind = kind_named(call, kind);
  call.check(std::isfinite(eps) && eps >= 0.0, "eps is ", eps, ", expected 0 or a positive number");
  args.eps = static_cast<float>(eps);

  Outputs outputs;
  const Sizes leading = sizes.first(sizes.size() - 1);
  const bool mean = statistics && args.kind == NormKind::layer;
  if (residual) outputs.sum = call.empty(sizes, call.dtype());
  outputs.normed = call.empty(sizes, call.dtype());
  if (mean) outputs.mean = call.empty(leading, DType::float32);
  if (statistics) outputs.rstd = call.empty(leading, DType::float32);
  if (rows > 0) {
    if (residual) args.sum = call.fresh_rows(*outputs.sum);
    args.normed = call.fresh_rows(*outputs.normed);
    if (mean) args.mean = per_row(*outputs.mean, rows);
    if (statistics) args.rstd = per_row(*outputs.rstd, rows);
    run(call, cpu::kernels().add_norm_forward, args);
  }
  return outputs;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_norm(const Operand& input, const OptionalOperand& residual,
                                                    const OptionalOperand& weight, const OptionalOperand& bias,
                                                    const std::string& kind, double eps) {
  const Call call("add_norm", "input", input);
  const Outputs outputs = forward(call, input, residual, weight, bias, kind, eps, true);
  const auto or_nothing = [&](const OptionalTensor& tensor) { return tensor ? *tensor : call.nothing(); };
  return {or_nothing(outputs.sum), *outputs.normed, or_nothing(outputs.mean), *outputs.rstd};
}

// The sum, where there is a residual, and the normed rows. Not an op: functional/add_norm.py asks it first.
std::tuple<OptionalTensor, Tensor> add_norm_without_statistics(const Operand& input, const OptionalOperand& residual,
                                                               const OptionalOperand& weight,
                                                               const OptionalOperand& bias, const std::string& kind,
                                                               double eps) {
  const Call call("add_norm", "input", input);
  const Outputs outputs = forward(call, input, residual, weight, bias, kind, eps, false);
  return {outputs.sum, *outputs.normed};
}

}  // namespace

Tensor norm(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  const Call call("add_norm", "input", input);
  return *forward(call, input, {}, weight, bias, "layer", eps, false).normed;
}

namespace {

// A statistic of the forward pass, contiguous as it left it there; one that was copied elsewhere is made so again.
TensorView check_statistic(const Call& call, const char* name, const Tensor& statistic, Sizes leading,
                           std::int64_t rows, OptionalTensor& copy) {
  call.check_float32(name, statistic, leading);
  if (statistic.is_contiguous()) return per_row(statistic, rows);
  copy = torch::stable::contiguous(statistic);
  return per_row(*copy, rows);
}

enum GradientIndex { grad_input, grad_weight, grad_bias };

std::tuple<Tensor, Tensor, Tensor> add_norm_backward(const Tensor& grad_normed, const OptionalTensor& grad_sum,
                                                     const Tensor& sum, const OptionalTensor& weight,
                                                     const Tensor& mean, const Tensor& rstd, const std::string& kind,
                                                     const std::vector<bool>& output_mask) {
  const Call call("add_norm_backward", "sum", sum);
  call.check_output_mask(output_mask, 3);
  OptionalTensor normed_copy, grad_sum_copy, sum_copy, mean_copy, rstd_copy;
  AddNormBackwardArgs args;
  args.sum = check_input(call, "sum", sum, sum_copy);
  const Sizes sizes = Layout(sum).sizes, leading = sizes.first(sizes.size() - 1);
  const std::int64_t rows = args.sum.size[0], width = args.sum.size[1];
  args.grad_normed = call.rows("grad_normed", grad_normed, sizes, normed_copy);
  if (grad_sum) args.grad_sum = call.rows("grad_sum", *grad_sum, sizes, grad_sum_copy);
  args.weight = call.tensor_or_float32("weight", weight, {width});
  args.kind = kind_named(call, kind);
  if (args.kind == NormKind::layer) args.mean = check_statistic(call, "mean", mean, leading, rows, mean_copy);
  args.rstd = check_statistic(call, "rstd", rstd, leading, rows, rstd_copy);

  // Without a weight there may still be a bias; its gradient then takes the call's dtype.
  const DType parameter = weight ? args.weight.dtype : call.dtype();
  const bool weight_wanted = output_mask[grad_weight] && weight;
  Tensor input_grad = output_mask[grad_input] ? call.empty(sizes, call.dtype()) : call.nothing();
  Tensor weight_grad = weight_wanted ? call.empty({&width, 1}, parameter) : call.nothing();
  Tensor bias_grad = output_mask[grad_bias] ? call.empty({&width, 1}, parameter) : call.nothing();
  if (rows == 0) {
    for (Tensor* grad : {&weight_grad, &bias_grad}) torch::stable::zero_(*grad);
  } else {
    if (output_mask[grad_input]) args.grad_input = call.fresh_rows(input_grad);
    if (weight_wanted) args.grad_weight = tensor_view(weight_grad, parameter);
    if (output_mask[grad_bias]) args.grad_bias = tensor_view(bias_grad, parameter);
    run(call, cpu::kernels().add_norm_backward, args);
  }
  return {std::move(input_grad), std::move(weight_grad), std::move(bias_grad)};
}

}  // namespace

void direct::add_add_norm(Functions& functions) {
  functions.add<&add_norm>("add_norm", {"kind", "eps"});
  functions.add<&add_norm_without_statistics>("add_norm_without_statistics", {"kind", "eps"});
  functions.add<&add_norm_backward>("add_norm_backward", {"kind", "output_mask"});
}

void register_add_norm(Library& library) {
  library.impl("add_norm", TORCH_BOX(&OfTensors<&add_norm>::call));
  library.impl("add_norm_backward", TORCH_BOX(&add_norm_backward));
}

}  // namespace bigmodel::binding
