// A Transformer encoder layer of a small input without a gradient, in one call, for the reason that self_attention.cpp
// gives. Not an op: what is not small, or needs more, takes the ops.
#include "cpu/cpu.h"
#include "direct.h"
#include "layer_parts.h"

namespace bigmodel::binding {
namespace {

// input [batch, length, width] or [length, width]; weights and biases as torch.nn.TransformerEncoderLayer has them.
// Nothing where self_attention or small_feed_forward gives nothing.
OptionalTensor encoder_layer(const Tensor& input, const Tensor& in_weight, const OptionalTensor& in_bias,
                             const Tensor& out_weight, const OptionalTensor& out_bias,
                             const OptionalTensor& norm1_weight, const OptionalTensor& norm1_bias, const Tensor& w1,
                             const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                             const OptionalTensor& norm2_weight, const OptionalTensor& norm2_bias, std::int64_t heads,
                             const std::string& activation, double eps1, double eps2, bool norm_first) {
  const auto attend = [&](const Tensor& x, const Tensor& residual) {
    return self_attention(x, in_weight, in_bias, out_weight, out_bias, residual, heads);
  };
  const auto feed = [&](const Tensor& x, const Tensor& residual) {
    return small_feed_forward(x, w1, b1, w2, b2, residual, activation);
  };
  if (norm_first) {
    const OptionalTensor attended = attend(norm(input, norm1_weight, norm1_bias, eps1), input);
    return attended ? feed(norm(*attended, norm2_weight, norm2_bias, eps2), *attended) : attended;
  }
  const OptionalTensor sum = attend(input, input);
  if (!sum) return sum;
  const Tensor attended = norm(*sum, norm1_weight, norm1_bias, eps1);
  const OptionalTensor fed = feed(attended, attended);
  return fed ? norm(*fed, norm2_weight, norm2_bias, eps2) : fed;
}

}  // namespace

void direct::add_encoder_layer(Functions& functions) {
  functions.add<&encoder_layer>("encoder_layer", {"heads", "activation", "eps1", "eps2", "norm_first"});
}

}  // namespace bigmodel::binding
