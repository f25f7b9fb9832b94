// feed_forward and feed_forward_backward: check, allocate, fill the arguments, call the kernel. Outputs keep the
// input's leading dimensions; kernels see them as one.
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "bigmodel/feed_forward.h"
#include "cpu/cpu.h"
#include "direct.h"
#include "layer_parts.h"
#include "options.h"
#include "packed_weight.h"
#include "registration.h"
#include "run.h"

namespace bigmodel::binding {
namespace {

Gate gate_named(const Call& call, const std::string& name) {
  if (name == "none") return Gate::none;
  if (name == "hidden") return Gate::hidden;
  if (name == "input") return Gate::input;
  call.fail("gate is '", name, "', expected 'none', 'hidden' or 'input'");
}

struct WeightTensors {
  const Tensor& w1;
  const OptionalTensor& b1;
  const Tensor& w2;
  const OptionalTensor &b2, &w_gate, &b_gate;
};

FeedForwardWeights check_weights(const Call& call, const WeightTensors& tensors, Gate gate, std::int64_t width) {
  FeedForwardWeights weights;
  weights.w1 = call.tensor("w1", tensors.w1, {any_size, width});
  const std::int64_t hidden = weights.w1.size[0];
  weights.w2 = call.tensor("w2", tensors.w2, {any_size, hidden});
  const std::int64_t out_width = weights.w2.size[0];
  call.check(width > 0 && hidden > 0 && out_width > 0, "w1 has shape [", hidden, ", ", width, "] and w2 [", out_width,
             ", ", hidden, "], expected at least one row and one column");
  weights.b1 = call.tensor("b1", tensors.b1, {hidden});
  weights.b2 = call.tensor("b2", tensors.b2, {out_width});
  if (gate == Gate::none) {
    call.check(!tensors.w_gate && !tensors.b_gate, "gate is 'none' but w_gate or b_gate is given");
    return weights;
  }
  call.check(tensors.w_gate.has_value(), "gate is given but w_gate is missing");
  const std::int64_t gated = gate == Gate::hidden ? hidden : width;
  weights.w_gate = call.tensor("w_gate", tensors.w_gate, {gated, width});
  weights.b_gate = call.tensor("b_gate", tensors.b_gate, {gated});
  return weights;
}

std::tuple<Tensor, Tensor, Tensor> feed_forward(const Tensor& input, const Tensor& w1, const OptionalTensor& b1,
                                                const Tensor& w2, const OptionalTensor& b2,
                                                const OptionalTensor& w_gate, const OptionalTensor& b_gate,
                                                const OptionalTensor& residual, const OptionalTensor& packed_w1,
                                                const OptionalTensor& packed_w2, const OptionalTensor& packed_w_gate,
                                                const OptionalTensor& dropout_seed, const std::string& activation,
                                                const std::string& gate, double dropout_p, bool save_preactivation) {
  const Call call("feed_forward", "input", input);
  OptionalTensor input_copy, residual_copy;
  FeedForwardForwardArgs args;
  args.input = call.rows("input", input, any_size, input_copy);
  args.activation = activation_named(call, activation);
  args.gate = gate_named(call, gate);
  args.dropout = check_dropout(call, dropout_p, dropout_seed);
  args.weights = check_weights(call, {w1, b1, w2, b2, w_gate, b_gate}, args.gate, args.input.size[1]);
  args.packed_w1 = checked_packed(call, "packed_w1", packed_w1, args.weights.w1);
  args.packed_w2 = checked_packed(call, "packed_w2", packed_w2, args.weights.w2);
  if (w_gate) args.packed_w_gate = checked_packed(call, "packed_w_gate", packed_w_gate, args.weights.w_gate);
  const WithFeatures sizes(input, args.weights.w2.size[0]);
  if (residual) args.residual = call.rows("residual", *residual, sizes, residual_copy);

  const bool save_gate = save_preactivation && args.gate != Gate::none;
  const auto saved = [&](bool wanted, const TensorView& weight) {
    return wanted ? call.empty(WithFeatures(input, weight.size[0]), call.dtype()) : call.nothing();
  };
  Tensor output = call.empty(sizes, call.dtype());
  Tensor preactivation = saved(save_preactivation, args.weights.w1);
  Tensor gate_preactivation = saved(save_gate, args.weights.w_gate);
  if (args.input.size[0] > 0) {
    args.output = call.fresh_rows(output);
    if (save_preactivation) args.preactivation = call.fresh_rows(preactivation);
    if (save_gate) args.gate_preactivation = call.fresh_rows(gate_preactivation);
    run(call, cpu::kernels().feed_forward_forward, args);
  }
  return {std::move(output), std::move(preactivation), std::move(gate_preactivation)};
}

}  // namespace

// Not an op: functional/feed_forward.py asks it first.
OptionalTensor small_feed_forward(const Tensor& input, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
                                  const OptionalTensor& b2, const OptionalTensor& residual,
                                  const std::string& activation) {
  const Call call("feed_forward", "input", input);
  if (!takes_as_it_lies(call, input, w1) || !takes_as_it_lies(call, input, w2)) return {};
  return std::get<0>(
      feed_forward(input, w1, b1, w2, b2, {}, {}, residual, {}, {}, {}, {}, activation, "none", 0.0, false));
}

namespace {

// One gradient: asked for, and of a tensor that is there.
struct Gradient {
  Tensor tensor;
  bool wanted;

  Gradient(const Call& call, bool asked, const Tensor* of)
      : tensor(asked && of ? call.empty(Layout(*of).sizes, call.dtype()) : call.nothing()), wanted(asked && of) {}

  void place(TensorView& view, DType dtype) const {
    if (wanted) view = tensor_view(tensor, dtype);
  }
};

const Tensor* address(const OptionalTensor& tensor) { return tensor ? &*tensor : nullptr; }

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> feed_forward_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
    const OptionalTensor& b2, const OptionalTensor& w_gate, const OptionalTensor& b_gate,
    const OptionalTensor& preactivation, const OptionalTensor& gate_preactivation, const OptionalTensor& dropout_seed,
    const std::string& activation, const std::string& gate, double dropout_p, const std::vector<bool>& output_mask) {
  const Call call("feed_forward_backward", "input", input);
  call.check_output_mask(output_mask, 7);
  OptionalTensor input_copy, grad_output_copy, preactivation_copy, gate_copy;
  FeedForwardBackwardArgs args;
  args.input = call.rows("input", input, any_size, input_copy);
  args.activation = activation_named(call, activation);
  args.gate = gate_named(call, gate);
  args.dropout = check_dropout(call, dropout_p, dropout_seed);
  args.weights = check_weights(call, {w1, b1, w2, b2, w_gate, b_gate}, args.gate, args.input.size[1]);
  const FeedForwardWeights& weights = args.weights;
  args.grad_output = call.rows("grad_output", grad_output, WithFeatures(input, weights.w2.size[0]), grad_output_copy);
  if (Call::exists(preactivation)) {
    args.preactivation =
        call.rows("preactivation", *preactivation, WithFeatures(input, weights.w1.size[0]), preactivation_copy);
  }
  if (Call::exists(gate_preactivation)) {
    args.gate_preactivation =
        call.rows("gate_preactivation", *gate_preactivation, WithFeatures(input, weights.w_gate.size[0]), gate_copy);
  }

  const Gradient input_grad(call, output_mask[0], &input), w1_grad(call, output_mask[1], &w1),
      b1_grad(call, output_mask[2], address(b1)), w2_grad(call, output_mask[3], &w2),
      b2_grad(call, output_mask[4], address(b2)), w_gate_grad(call, output_mask[5], address(w_gate)),
      b_gate_grad(call, output_mask[6], address(b_gate));
  if (args.input.size[0] == 0) {
    for (const Gradient* grad : {&w1_grad, &b1_grad, &w2_grad, &b2_grad, &w_gate_grad, &b_gate_grad}) {
      Tensor tensor = grad->tensor;
      torch::stable::zero_(tensor);
    }
  } else {
    if (input_grad.wanted) args.grad_input = call.fresh_rows(input_grad.tensor);
    w1_grad.place(args.grad_w1, call.dtype());
    b1_grad.place(args.grad_b1, call.dtype());
    w2_grad.place(args.grad_w2, call.dtype());
    b2_grad.place(args.grad_b2, call.dtype());
    w_gate_grad.place(args.grad_w_gate, call.dtype());
    b_gate_grad.place(args.grad_b_gate, call.dtype());
    run(call, cpu::kernels().feed_forward_backward, args);
  }
  return {input_grad.tensor, w1_grad.tensor,     b1_grad.tensor,    w2_grad.tensor,
          b2_grad.tensor,    w_gate_grad.tensor, b_gate_grad.tensor};
}

}  // namespace

void direct::add_feed_forward(Functions& functions) {
  functions.add<&feed_forward>("feed_forward", {"activation", "gate", "dropout_p", "save_preactivation"});
  functions.add<&small_feed_forward>("small_feed_forward", {"activation"});
  functions.add<&feed_forward_backward>("feed_forward_backward", {"activation", "gate", "dropout_p", "output_mask"});
}

void register_feed_forward(Library& library) {
  library.impl("feed_forward", TORCH_BOX(&feed_forward));
  library.impl("feed_forward_backward", TORCH_BOX(&feed_forward_backward));
}

}  // namespace bigmodel::binding
