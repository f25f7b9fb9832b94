// linear, linear_backward and linear_pack: check, allocate, fill the arguments, call the kernel. Outputs keep the
// input's leading dimensions; kernels see them as one.
#include <torch/csrc/stable/ops.h>

#include <string_view>
#include <tuple>
#include <vector>

#include "cpu/cpu.h"
#include "direct.h"
#include "options.h"
#include "packed_weight.h"
#include "registration.h"
#include "run.h"

namespace bigmodel::binding {

const void* checked_packed(const Call& call, const char* name, const OptionalTensor& packed, const TensorView& weight) {
  if (!packed) return nullptr;
  call.check(!call.on_cuda(), name, " is given, expected none: only the CPU kernels read packed weights");
  call.check_device(name, *packed);
  std::int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(packed->get(), &dtype));
  const std::int64_t bytes = cpu::kernels().linear_packed_bytes(weight);
  call.check(dtype == aoti_torch_dtype_uint8() && packed->is_contiguous() && packed->numel() == bytes, name,
             " was not made by linear_pack from this weight for the CPU target in use: it has dtype ",
             dtype_name(*packed), " and shape ", shape_text(Layout(*packed).sizes), ", expected ", bytes,
             " bytes as uint8");
  return packed->const_data_ptr();
}

std::int64_t few_rows(DType dtype, std::int64_t weight_elements) {
  const std::string_view target = cpu::kernels().target;
  const bool pairs = dtype == DType::bfloat16 && (target == "avx512bf16" || target == "amx" || target == "neon_bf16");
  const bool cached = weight_elements >= 4 * least_packed_elements && weight_elements < std::int64_t{1} << 22;
  return pairs && cached ? 16 : 32;
}

bool takes_as_it_lies(const Call& call, const Operand& input, const Operand& weight) {
  const Layout rows = input.layout(), columns = weight.layout();
  if (rows.sizes.empty() || columns.sizes.size() != 2 || weight.numel() < least_packed_elements) return true;
  const std::int64_t most = few_rows(call.dtype(), weight.numel());
  return columns.strides[1] == 1 && input.numel() <= most * rows.sizes.back();
}

namespace {

TensorView check_weight(const Call& call, const Operand& weight, std::int64_t in_features) {
  TensorView view = call.tensor("weight", weight, {any_size, in_features});
  call.check(view.size[0] > 0 && view.size[1] > 0, "weight has shape [", view.size[0], ", ", view.size[1],
             "], expected at least one row and one column");
  return view;
}

// The output; `preactivation` where it is wanted.
Tensor forward(const Call& call, const Operand& input, const Operand& weight, const OptionalOperand& bias,
               const OptionalOperand& residual, const OptionalTensor& packed_weight, const std::string& activation,
               OptionalTensor* preactivation) {
  OptionalTensor input_copy, residual_copy;
  LinearForwardArgs args;
  args.input = call.rows("input", input, any_size, input_copy);
  args.weight = check_weight(call, weight, args.input.size[1]);
  const std::int64_t out_features = args.weight.size[0];
  args.bias = call.tensor("bias", bias, {out_features});
  args.packed_weight = checked_packed(call, "packed_weight", packed_weight, args.weight);
  args.activation = activation_named(call, activation);
  const WithFeatures sizes(input, out_features);
  if (residual) args.residual = call.rows("residual", *residual, sizes, residual_copy);

  Tensor output = call.empty(sizes, call.dtype());
  if (preactivation) *preactivation = call.empty(sizes, call.dtype());
  if (args.input.size[0] > 0) {
    args.output = call.fresh_rows(output);
    if (preactivation) args.preactivation = call.fresh_rows(**preactivation);
    run(call, cpu::kernels().linear_forward, args);
  }
  return output;
}

std::tuple<Tensor, Tensor> linear(const Operand& input, const Operand& weight, const OptionalOperand& bias,
                                  const OptionalOperand& residual, const OptionalTensor& packed_weight,
                                  const std::string& activation, bool save_preactivation) {
  const Call call("linear", "input", input);
  OptionalTensor preactivation;
  Tensor output = forward(call, input, weight, bias, residual, packed_weight, activation,
                          save_preactivation ? &preactivation : nullptr);
  return {std::move(output), preactivation ? *preactivation : call.nothing()};
}

// linear where it wants no packed weight; nothing where it might. Not an op: functional/linear.py asks it first.
OptionalTensor small_linear(const Operand& input, const Operand& weight, const OptionalOperand& bias,
                            const OptionalOperand& residual, const std::string& activation) {
  const Call call("linear", "input", input);
  if (!takes_as_it_lies(call, input, weight)) return {};
  return forward(call, input, weight, bias, residual, {}, activation, nullptr);
}

enum GradientIndex { grad_input, grad_weight, grad_bias };

std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                   const OptionalTensor& bias, const OptionalTensor& preactivation,
                                                   const std::string& activation,
                                                   const std::vector<bool>& output_mask) {
  const Call call("linear_backward", "input", input);
  call.check_output_mask(output_mask, 3);
  OptionalTensor grad_output_copy, input_copy, preactivation_copy;
  LinearBackwardArgs args;
  args.input = call.rows("input", input, any_size, input_copy);
  args.weight = check_weight(call, weight, args.input.size[1]);
  const std::int64_t out_features = args.weight.size[0];
  args.bias = call.tensor("bias", bias, {out_features});
  args.activation = activation_named(call, activation);
  const WithFeatures sizes(input, out_features);
  args.grad_output = call.rows("grad_output", grad_output, sizes, grad_output_copy);
  if (Call::exists(preactivation)) {
    args.preactivation = call.rows("preactivation", *preactivation, sizes, preactivation_copy);
  }

  const bool bias_wanted = output_mask[grad_bias] && bias;
  Tensor input_grad = output_mask[grad_input] ? call.empty(Layout(input).sizes, call.dtype()) : call.nothing();
  Tensor weight_grad = output_mask[grad_weight] ? call.empty(Layout(weight).sizes, call.dtype()) : call.nothing();
  Tensor bias_grad = bias_wanted ? call.empty(Layout(*bias).sizes, call.dtype()) : call.nothing();
  if (args.input.size[0] == 0) {
    for (Tensor* grad : {&weight_grad, &bias_grad}) torch::stable::zero_(*grad);
  } else {
    if (output_mask[grad_input]) args.grad_input = call.fresh_rows(input_grad);
    if (output_mask[grad_weight]) args.grad_weight = tensor_view(weight_grad, call.dtype());
    if (bias_wanted) args.grad_bias = tensor_view(bias_grad, call.dtype());
    run(call, cpu::kernels().linear_backward, args);
  }
  return {std::move(input_grad), std::move(weight_grad), std::move(bias_grad)};
}

Tensor linear_pack(const Tensor& weight) {
  const Call call("linear_pack", "weight", weight);
  LinearPackArgs args{.weight = check_weight(call, weight, any_size)};
  Tensor packed = call.bytes(cpu::kernels().linear_packed_bytes(args.weight));
  torch::stable::zero_(packed);  // the kernel leaves padding unwritten, and equal weights must give equal bytes
  args.packed_weight = packed.mutable_data_ptr();
  cpu::kernels().linear_pack.run(args);
  return packed;
}

// Of a weight's contents; not an op, since no graph needs it.
std::int64_t weight_fingerprint(const Tensor& weight) {
  const Call call("weight_fingerprint", "weight", weight);
  return static_cast<std::int64_t>(cpu::kernels().fingerprint(check_weight(call, weight, any_size)));
}

}  // namespace

void direct::add_linear(Functions& functions) {
  functions.add<&linear>("linear", {"activation", "save_preactivation"});
  functions.add<&small_linear>("small_linear", {"activation"});
  functions.add<&linear_backward>("linear_backward", {"activation", "output_mask"});
  functions.add<&linear_pack>("linear_pack", {});
  functions.add<&weight_fingerprint>("weight_fingerprint", {});
}

void register_linear(Library& library) {
  library.impl("linear", TORCH_BOX(&OfTensors<&linear>::call));
  library.impl("linear_backward", TORCH_BOX(&linear_backward));
}

void register_linear_pack(Library& library) { library.impl("linear_pack", TORCH_BOX(&linear_pack)); }

}  // namespace bigmodel::binding
