// Self-attention of a small input without a gradient: both projections and attention in one call, since three calls and
// the views between them take longer than their kernels. Not an op: what is not small, or needs more, takes the ops.
#include <algorithm>
#include <cmath>

#include "cpu/cpu.h"
#include "direct.h"
#include "layer_parts.h"
#include "packed_weight.h"
#include "run.h"

namespace bigmodel::binding {
namespace {

struct SelfAttentionShape {
  std::int64_t batch, length, heads, head_dim;

  std::int64_t width() const { return heads * head_dim; }
  std::int64_t rows() const { return batch * length; }
};

// Of a fresh buffer of [batch, length, parts, heads, head_dim], one part as [batch, heads, length, head_dim].
TensorView heads_of(const Tensor& buffer, DType dtype, const SelfAttentionShape& shape, int parts, int part) {
  const std::int64_t token = parts * shape.width();
  TensorView view = tensor_view(buffer, dtype);
  view.data = static_cast<char*>(view.data) + part * shape.width() * bytes_of(dtype);
  const std::int64_t size[] = {shape.batch, shape.heads, shape.length, shape.head_dim};
  const std::int64_t stride[] = {shape.length * token, shape.head_dim, token, 1};
  std::copy_n(size, max_dims, view.size);
  std::copy_n(stride, max_dims, view.stride);
  return view;
}

void attend(const Call& call, const SelfAttentionShape& shape, const Tensor& projected, Tensor& joined) {
  AttentionForwardArgs args;
  TensorView* const inputs[] = {&args.inputs.query, &args.inputs.key, &args.inputs.value};
  for (int part = 0; part < 3; ++part) *inputs[part] = heads_of(projected, call.dtype(), shape, 3, part);
  args.inputs.options.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
  args.output = heads_of(joined, call.dtype(), shape, 1, 0);
  const std::int64_t lse_sizes[] = {shape.batch, shape.heads, shape.length};
  const Tensor lse = call.empty(lse_sizes, DType::float32);
  args.lse = tensor_view(lse, DType::float32);
  run(call, cpu::kernels().attention_forward, args);
}

}  // namespace

// input [batch, length, width] or [length, width]; in_weight [3 width, width], rows of query, key and value.
OptionalTensor self_attention(const Tensor& input, const Tensor& in_weight, const OptionalTensor& in_bias,
                              const Tensor& out_weight, const OptionalTensor& out_bias, const OptionalTensor& residual,
                              std::int64_t heads) {
  const Call call("self_attention", "input", input);
  if (!takes_as_it_lies(call, input, in_weight) || !takes_as_it_lies(call, input, out_weight)) return {};
  const Layout layout(input);
  const std::size_t dims = layout.sizes.size();
  call.check(dims == 2 || dims == 3, "input has ", dims, " dimensions, expected two or three");
  const std::int64_t width = layout.sizes.back();
  call.check(heads > 0 && width > 0 && width % heads == 0, "input has ", width, " features, expected those of ", heads,
             " heads");
  const SelfAttentionShape shape{dims == 3 ? layout.sizes[0] : 1, layout.sizes[dims - 2], heads, width / heads};
  call.check(shape.rows() > 0, "input is empty");

  OptionalTensor input_copy, residual_copy;
  LinearForwardArgs in, out;
  in.input = call.rows("input", input, width, input_copy);
  in.weight = call.tensor("in_weight", in_weight, {3 * width, width});
  in.bias = call.tensor("in_bias", in_bias, {3 * width});
  out.weight = call.tensor("out_weight", out_weight, {width, width});
  out.bias = call.tensor("out_bias", out_bias, {width});
  if (residual) out.residual = call.rows("residual", *residual, layout.sizes, residual_copy);

  const std::int64_t projected_sizes[] = {shape.rows(), 3 * width}, joined_sizes[] = {shape.rows(), width};
  const Tensor projected = call.empty(projected_sizes, call.dtype());
  Tensor joined = call.empty(joined_sizes, call.dtype()), output = call.empty(layout.sizes, call.dtype());
  in.output = call.fresh_rows(projected);
  run(call, cpu::kernels().linear_forward, in);
  attend(call, shape, projected, joined);
  out.input = call.fresh_rows(joined);
  out.output = call.fresh_rows(output);
  run(call, cpu::kernels().linear_forward, out);
  return output;
}

void direct::add_self_attention(Functions& functions) { functions.add<&self_attention>("self_attention", {"heads"}); }

}  // namespace bigmodel::binding
