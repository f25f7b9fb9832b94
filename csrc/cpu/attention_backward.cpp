// Gradients of attention with respect to all its inputs (Dao et al., "FlashAttention", 2022, algorithm 4, with the loop
// over keys outside): see attention_gradient.cpp.
#include "cpu/attention_gradient.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

std::int64_t attention_backward_workspace(const AttentionBackwardArgs& args) {
  return attention_gradient_workspace(gradient_args(args));
}

void attention_backward(const AttentionBackwardArgs& args) { attention_gradient(gradient_args(args)); }

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
