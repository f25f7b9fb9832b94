// Gradients of attention_weights with respect to query, key, lse and mask: see attention_gradient.cpp.
#include "cpu/attention_gradient.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

static AttentionGradientArgs gradient_args(const AttentionWeightsBackwardArgs& args) {
  AttentionGradientArgs gradient;
  gradient.inputs = args.inputs;
  gradient.lse = args.lse;
  gradient.grad_weights = args.grad_weights;
  gradient.average_heads = args.average_heads;
  gradient.grad_query = args.grad_query;
  gradient.grad_key = args.grad_key;
  gradient.grad_input_lse = args.grad_lse;
  gradient.grad_mask = args.grad_mask;
  gradient.workspace = args.workspace;
  return gradient;
}

std::int64_t attention_weights_backward_workspace(const AttentionWeightsBackwardArgs& args) {
  return attention_gradient_workspace(gradient_args(args));
}

void attention_weights_backward(const AttentionWeightsBackwardArgs& args) { attention_gradient(gradient_args(args)); }

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
