// The gradients of attention and of attention_weights: one algorithm, since both differentiate
// weights = exp(scores - lse) and differ only in where dL/dweights comes from.
#pragma once

#include "cpu/isa/inline.h"
#include "cpu/kernels.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// Absent gradients are not computed.
struct AttentionGradientArgs {
  AttentionInputs inputs;
  TensorView lse;
  // Of attention: dL/dweights = grad_output value^T, and the softmax's own denominator is differentiated too.
  TensorView output, grad_output, grad_lse;
  // Of attention_weights: dL/dweights is given, and lse is an input like any other.
  TensorView grad_weights;
  bool average_heads = false;

  TensorView grad_query, grad_key, grad_value;
  TensorView grad_mask, grad_sinks;
  TensorView grad_input_lse;  // of attention_weights: dL/dlse
  void* workspace = nullptr;
};

BIGMODEL_INLINE AttentionGradientArgs gradient_args(const AttentionBackwardArgs& args) {
  AttentionGradientArgs gradient;
  gradient.inputs = args.inputs;
  gradient.lse = args.lse;
  gradient.output = args.output;
  gradient.grad_output = args.grad_output;
  gradient.grad_lse = args.grad_lse;
  gradient.grad_query = args.grad_query;
  gradient.grad_key = args.grad_key;
  gradient.grad_value = args.grad_value;
  gradient.grad_mask = args.grad_mask;
  gradient.grad_sinks = args.grad_sinks;
  gradient.workspace = args.workspace;
  return gradient;
}

std::int64_t attention_gradient_workspace(const AttentionGradientArgs&);
void attention_gradient(const AttentionGradientArgs&);

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
