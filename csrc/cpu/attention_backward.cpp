// Gradients of attention with respect to all its inputs (Dao et al., "FlashAttention", 2022, algorithm 4, with the loop
// over keys outside): see attention_gradient.cpp.
#include "cpu/attention_gradient.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

static AttentionGradientArgs gradient_args(const AttentionBackwardArgs& args) {
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

std::int64_t attention_backward_workspace(const AttentionBackwardArgs& args) {
  return attention_gradient_workspace(gradient_args(args));
}

void attention_backward(const AttentionBackwardArgs& args) { attention_gradient(gradient_args(args)); }

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
