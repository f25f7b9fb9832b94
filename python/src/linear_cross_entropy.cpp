// linear_cross_entropy and its gradient: check, allocate, fill the arguments, call the kernel. loss and lse have the
// target's shape.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "bigmodel/linear_cross_entropy.h"
#include "call.h"
#include "cpu/cpu.h"
#include "direct.h"
#include "registration.h"
#include "run.h"

namespace bigmodel::binding {
namespace {

TensorView check_weight(const Call& call, const Tensor& weight, std::int64_t width) {
  TensorView view = call.tensor("weight", weight, {any_size, width});
  call.check(view.size[0] > 0 && view.size[1] > 0, "weight has shape [", view.size[0], ", ", view.size[1],
             "], expected at least one row and one column");
  return view;
}

// The target, contiguous; one that is not is copied, and `copy` keeps it alive.
const std::int64_t* check_target(const Call& call, const Tensor& target, Sizes leading, std::int64_t vocabulary,
                                 std::int64_t ignore_index, OptionalTensor& copy) {
  call.check_device("target", target);
  std::int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(target.get(), &dtype));
  const Sizes sizes = Layout(target).sizes;
  call.check(
      dtype == aoti_torch_dtype_int64() && std::equal(sizes.begin(), sizes.end(), leading.begin(), leading.end()),
      "target has shape ", shape_text(sizes), " and dtype ", dtype_name(target), ", expected ", shape_text(leading),
      " in int64");
  if (!target.is_contiguous()) copy = torch::stable::contiguous(target);
  const auto* values = static_cast<const std::int64_t*>((copy ? *copy : target).const_data_ptr());
  if (call.on_cuda()) return values;
  for (std::int64_t i = 0; i < target.numel(); ++i) {
    call.check((values[i] >= 0 && values[i] < vocabulary) || values[i] == ignore_index, "target holds ", values[i],
               ", expected numbers from 0 to ", vocabulary - 1, " or ignore_index, ", ignore_index);
  }
  return values;
}

CrossEntropyOptions checked_options(const Call& call, std::int64_t ignore_index, double label_smoothing, double z_loss,
                                    double softcap) {
  call.check(label_smoothing >= 0.0 && label_smoothing <= 1.0, "label_smoothing is ", label_smoothing,
             ", expected a number from 0 to 1");
  call.check(std::isfinite(z_loss) && z_loss >= 0.0, "z_loss is ", z_loss, ", expected 0 or a positive number");
  call.check(std::isfinite(softcap) && softcap >= 0.0, "softcap is ", softcap, ", expected 0 or a positive number");
  return {ignore_index, static_cast<float>(label_smoothing), static_cast<float>(z_loss), static_cast<float>(softcap)};
}

std::tuple<Tensor, Tensor> linear_cross_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                                const OptionalTensor& bias, std::int64_t ignore_index,
                                                double label_smoothing, double z_loss, double softcap) {
  const Call call("linear_cross_entropy", "hidden", hidden);
  OptionalTensor hidden_copy, target_copy;
  LinearCrossEntropyForwardArgs args;
  args.hidden = call.rows("hidden", hidden, any_size, hidden_copy);
  args.weight = check_weight(call, weight, args.hidden.size[1]);
  args.bias = call.tensor("bias", bias, {args.weight.size[0]});
  const Sizes sizes = Layout(hidden).sizes, leading = sizes.first(sizes.size() - 1);
  args.target = check_target(call, target, leading, args.weight.size[0], ignore_index, target_copy);
  args.options = checked_options(call, ignore_index, label_smoothing, z_loss, softcap);
  Tensor loss = call.empty(leading, DType::float32), lse = call.empty(leading, DType::float32);
  if (args.hidden.size[0] > 0) {
    args.loss = static_cast<float*>(loss.mutable_data_ptr());
    args.lse = static_cast<float*>(lse.mutable_data_ptr());
    run(call, cpu::kernels().linear_cross_entropy_forward, args);
  }
  return {std::move(loss), std::move(lse)};
}

// One number per row in fp32, contiguous.
const Tensor& contiguous_rows(const Call& call, const char* name, const Tensor& tensor, Sizes leading,
                              OptionalTensor& copy) {
  call.check_float32(name, tensor, leading);
  if (tensor.is_contiguous()) return tensor;
  copy = torch::stable::contiguous(tensor);
  return *copy;
}

enum GradientIndex { grad_hidden, grad_weight, grad_bias };

std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy_backward(const Tensor& grad_loss, const Tensor& hidden,
                                                                 const Tensor& weight, const Tensor& target,
                                                                 const Tensor& lse, const OptionalTensor& bias,
                                                                 std::int64_t ignore_index, double label_smoothing,
                                                                 double z_loss, double softcap,
                                                                 const std::vector<bool>& output_mask) {
  const Call call("linear_cross_entropy_backward", "hidden", hidden);
  call.check_output_mask(output_mask, 3);
  OptionalTensor hidden_copy, target_copy, lse_copy, grad_copy;
  LinearCrossEntropyBackwardArgs args;
  args.hidden = call.rows("hidden", hidden, any_size, hidden_copy);
  args.weight = check_weight(call, weight, args.hidden.size[1]);
  args.bias = call.tensor("bias", bias, {args.weight.size[0]});
  const Sizes sizes = Layout(hidden).sizes, leading = sizes.first(sizes.size() - 1);
  args.target = check_target(call, target, leading, args.weight.size[0], ignore_index, target_copy);
  args.lse = static_cast<const float*>(contiguous_rows(call, "lse", lse, leading, lse_copy).const_data_ptr());
  args.options = checked_options(call, ignore_index, label_smoothing, z_loss, softcap);
  const Tensor& grad = contiguous_rows(call, "grad_loss", grad_loss, leading, grad_copy);
  args.grad_loss.data = const_cast<void*>(grad.const_data_ptr());
  args.grad_loss.size[0] = args.hidden.size[0];
  args.grad_loss.stride[0] = 1;

  const bool bias_wanted = output_mask[grad_bias] && bias;
  Tensor hidden_grad = output_mask[grad_hidden] ? call.empty(sizes, call.dtype()) : call.nothing();
  Tensor weight_grad = output_mask[grad_weight] ? call.empty(Layout(weight).sizes, call.dtype()) : call.nothing();
  Tensor bias_grad = bias_wanted ? call.empty(Layout(*bias).sizes, call.dtype()) : call.nothing();
  if (args.hidden.size[0] == 0) {
    for (Tensor* each : {&weight_grad, &bias_grad}) torch::stable::zero_(*each);
  } else {
    if (output_mask[grad_hidden]) args.grad_hidden = call.fresh_rows(hidden_grad);
    if (output_mask[grad_weight]) args.grad_weight = tensor_view(weight_grad, call.dtype());
    if (bias_wanted) args.grad_bias = tensor_view(bias_grad, call.dtype());
    run(call, cpu::kernels().linear_cross_entropy_backward, args);
  }
  return {std::move(hidden_grad), std::move(weight_grad), std::move(bias_grad)};
}

}  // namespace

void direct::add_linear_cross_entropy(Functions& functions) {
  functions.add<&linear_cross_entropy>("linear_cross_entropy",
                                       {"ignore_index", "label_smoothing", "z_loss", "softcap"});
  functions.add<&linear_cross_entropy_backward>(
      "linear_cross_entropy_backward", {"ignore_index", "label_smoothing", "z_loss", "softcap", "output_mask"});
}

void register_linear_cross_entropy(Library& library) {
  library.impl("linear_cross_entropy", TORCH_BOX(&linear_cross_entropy));
  library.impl("linear_cross_entropy_backward", TORCH_BOX(&linear_cross_entropy_backward));
}

}  // namespace bigmodel::binding
