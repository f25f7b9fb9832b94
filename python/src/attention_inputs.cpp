#include "attention_inputs.h"

#include <algorithm>
#include <cmath>

#include "options.h"

namespace bigmodel::binding {
namespace {

Causal causal_named(const Call& call, const std::string& name) {
  if (name == "none") return Causal::none;
  if (name == "top_left") return Causal::top_left;
  if (name == "bottom_right") return Causal::bottom_right;
  call.fail("causal is '", name, "', expected 'none', 'top_left' or 'bottom_right'");
}

// -1 is unbounded, and so is a window that no pair of positions can leave; kernels may then add window and position.
std::int64_t checked_window(const Call& call, const char* name, std::int64_t window, const AttentionShape& shape) {
  call.check(window >= -1, name, " is ", window, ", expected -1 (unbounded) or more");
  return window >= shape.q_len + shape.kv_len ? -1 : window;
}

AttentionOptions check_options(const Call& call, const AttentionKeywords& keywords, const AttentionShape& shape,
                               const OptionalTensor& seed) {
  AttentionOptions options;
  options.causal = causal_named(call, keywords.causal);
  const double scale = keywords.scale.value_or(1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
  call.check(std::isfinite(scale), "scale is ", scale, ", expected a finite number");
  options.scale = static_cast<float>(scale);
  options.window_left = checked_window(call, "window_left", keywords.window_left, shape);
  options.window_right = checked_window(call, "window_right", keywords.window_right, shape);
  call.check(std::isfinite(keywords.softcap) && keywords.softcap >= 0.0, "softcap is ", keywords.softcap,
             ", expected 0 (off) or a positive number");
  options.softcap = static_cast<float>(keywords.softcap);
  options.dropout = check_dropout(call, keywords.dropout_p, seed);
  return options;
}

// Dimensions of size 1 become broadcast ones: full size, stride 0.
void broadcast(TensorView& view, int dim, std::int64_t full) {
  if (view.size[dim] == 1 && full != 1) {
    view.size[dim] = full;
    view.stride[dim] = 0;
  }
}

TensorView check_mask(const Call& call, const OptionalTensor& mask, const AttentionShape& shape) {
  if (!mask) return {};
  call.check_device("mask", *mask);
  const std::optional<DType> dtype = dtype_of(*mask);
  call.check(dtype == DType::boolean || dtype == DType::float32 || dtype == call.dtype(), "mask has dtype ",
             dtype_name(*mask), ", expected bool, float32 or the query's dtype");
  const Layout layout(*mask);
  const std::int64_t full[] = {shape.batch, shape.heads, shape.q_len, shape.kv_len};
  const bool fits = std::equal(layout.sizes.begin(), layout.sizes.end(), std::begin(full), std::end(full),
                               [](std::int64_t size, std::int64_t whole) { return size == 1 || size == whole; });
  call.check(fits, "mask has shape ", shape_text(layout.sizes), ", expected four dimensions, each 1 or that of ",
             shape_text(full));
  TensorView view = tensor_view(mask->const_data_ptr(), layout, *dtype);
  for (int dim = 0; dim < 4; ++dim) broadcast(view, dim, full[dim]);
  return view;
}

TensorView check_alibi_slopes(const Call& call, const OptionalTensor& slopes, const AttentionShape& shape) {
  if (!slopes) return {};
  const Layout layout(*slopes);
  if (layout.sizes.size() != 2) {
    const TensorView view = call.float32("alibi_slopes", *slopes, {shape.heads});
    TensorView result = view;
    result.size[0] = shape.batch;
    result.stride[0] = 0;
    result.size[1] = shape.heads;
    result.stride[1] = view.stride[0];
    return result;
  }
  const std::int64_t batch = layout.sizes[0] == 1 ? 1 : shape.batch;
  TensorView result = call.float32("alibi_slopes", *slopes, {batch, shape.heads});
  broadcast(result, 0, shape.batch);
  return result;
}

}  // namespace

CheckedAttention check_attention(const Call& call, const AttentionTensors& tensors, const AttentionKeywords& keywords) {
  CheckedAttention checked;
  AttentionShape& shape = checked.shape;
  AttentionInputs& inputs = checked.inputs;
  inputs.query = call.tensor("query", tensors.query, {any_size, any_size, any_size, any_size});
  shape.batch = inputs.query.size[0];
  shape.heads = inputs.query.size[1];
  shape.q_len = inputs.query.size[2];
  shape.head_dim = inputs.query.size[3];
  call.check(shape.head_dim > 0, "query has head_dim 0, expected at least 1");

  inputs.key = call.tensor("key", tensors.key, {shape.batch, any_size, any_size, shape.head_dim});
  shape.kv_heads = inputs.key.size[1];
  shape.kv_len = inputs.key.size[2];
  const bool grouped = shape.kv_heads == 0 ? shape.heads == 0 : shape.heads % shape.kv_heads == 0;
  call.check(grouped, "key has ", shape.kv_heads, " heads, query ", shape.heads,
             ": query heads must be a multiple of key heads");
  if (tensors.value) {
    inputs.value = call.tensor("value", *tensors.value, {shape.batch, shape.kv_heads, shape.kv_len, any_size});
    shape.value_dim = inputs.value.size[3];
    call.check(shape.value_dim > 0, "value has value_dim 0, expected at least 1");
  }
  check_score_rules(call, tensors, keywords, checked);
  return checked;
}

void check_score_rules(const Call& call, const AttentionTensors& tensors, const AttentionKeywords& keywords,
                       CheckedAttention& checked) {
  auto& [shape, inputs] = checked;
  inputs.mask = check_mask(call, tensors.mask, shape);
  inputs.alibi_slopes = check_alibi_slopes(call, tensors.alibi_slopes, shape);
  if (tensors.sinks) inputs.sinks = call.float32("sinks", *tensors.sinks, {shape.heads});
  inputs.options = check_options(call, keywords, shape, tensors.dropout_seed);
}

Tensor empty_like_order(const Call& call, const TensorView& like, std::int64_t features) {
  const std::int64_t batch = like.size[0], heads = like.size[1], length = like.size[2];
  const std::int64_t sizes[] = {batch, heads, length, features};
  const auto spread = [](std::int64_t size) { return std::max<std::int64_t>(size, 1); };
  const bool heads_inside = heads > 1 && length > 1 && like.stride[1] < like.stride[2];
  if (!heads_inside) return call.empty(sizes, call.dtype());
  const std::int64_t row = spread(features), token = row * heads;
  const std::int64_t strides[] = {token * length, row, token, 1};
  return call.empty(sizes, strides, call.dtype());
}

bool mask_has_gradient(const OptionalTensor& mask, const AttentionInputs& inputs) {
  return mask.has_value() && inputs.mask.dtype != DType::boolean;  // a mask of zero elements has no address
}

}  // namespace bigmodel::binding
