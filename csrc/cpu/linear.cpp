// output = activation(input weight^T + bias) + residual, its gradients, and weights laid out ahead of time.
//
// Workspace. Forward: a chunk of packed weight (16 MB, or 256 columns of it where that is more; none of it when the
// weight comes packed) and per thread a block of input and of sums (0.3 MB). Backward: the same for each product in
// turn, and with an activation the gradient of its argument, [rows, out_features] in the tensors' dtype.
#include "cpu/column_sums.h"
#include "cpu/epilogue.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {
namespace {

template <class T>
struct LinearForward {
  Gemm<T> gemm{};
  float* bias = nullptr;
};

template <class T>
LinearForward<T> plan_forward(const LinearForwardArgs& args, Arena& arena) {
  LinearForward<T> forward;
  forward.bias = take<float>(arena, round_up(args.weight.size[0], lanes));
  forward.gemm.products = 1;
  forward.gemm.product[0] = {matrix<const T>(args.input), transposed(matrix<const T>(args.weight)), args.packed_weight};
  plan(forward.gemm, arena);
  return forward;
}

template <class T>
void run_forward(const LinearForwardArgs& args) {
  Arena arena{static_cast<char*>(args.workspace)};
  const LinearForward<T> forward = plan_forward<T>(args, arena);
  load_bias<T>(forward.bias, args.bias, args.weight.size[0]);
  const auto output = matrix<T>(args.output), preactivation = matrix<T>(args.preactivation);
  const auto residual = matrix<const T>(args.residual);
  run(forward.gemm, touching(output, preactivation, residual), [&](const Block& block) {
    with_activation(args.activation, [&](auto formula) BIGMODEL_INLINE_LAMBDA {
      for_each_vector(block, [&](const Place& place) BIGMODEL_INLINE_LAMBDA {
        const F32 z = load(block.sums[0] + place.offset) + load(forward.bias + place.column);
        write_if_there(preactivation, place, z);
        const F32 y = value_for<T>(formula, z);
        write(output, place, residual.data ? y + read(residual, place) : y);
      });
    });
  });
}

// The gradient of the activation's argument: grad_output itself without an activation, else formed once, in the
// tensors' dtype, since two products and a sum read it.
template <class T>
struct LinearBackward {
  T* formed = nullptr;
  Matrix<const T> grad;
  float* bias = nullptr;
  Gemm<T> preactivation{}, input{}, weight{};  // the products that are run, in turn, in the same workspace
  float* sums = nullptr;
};

template <class T>
LinearBackward<T> plan_backward(const LinearBackwardArgs& args, Arena& arena) {
  LinearBackward<T> backward;
  const std::int64_t rows = args.input.size[0], out_features = args.weight.size[0];
  const auto input = matrix<const T>(args.input), weight = matrix<const T>(args.weight);
  backward.grad = matrix<const T>(args.grad_output);
  if (args.activation != Activation::none) {
    backward.formed = take<T>(arena, rows * out_features);
    backward.grad = readable(row_major(backward.formed, rows, out_features));
    backward.bias = take<float>(arena, round_up(out_features, lanes));
  }
  const std::int64_t kept = arena.used;
  if (args.activation != Activation::none && !args.preactivation.data) {
    plan_product(backward.preactivation, arena, kept, input, transposed(weight));
  }
  if (args.grad_input.data) plan_product(backward.input, arena, kept, backward.grad, weight);
  if (args.grad_weight.data) plan_product(backward.weight, arena, kept, transposed(backward.grad), input);
  arena.used = kept;
  if (args.grad_bias.data) backward.sums = take<float>(arena, column_sums_floats(rows, out_features));
  return backward;
}

// Writes grad_output activation'(z), with z(place) the argument of the activation.
template <class T, class Argument>
void form_gradient(const LinearBackwardArgs& args, const LinearBackward<T>& backward, const Block& block, Argument z) {
  const auto grad_output = matrix<const T>(args.grad_output);
  const auto formed = row_major(backward.formed, backward.grad.rows, backward.grad.columns);
  with_activation(args.activation, [&](auto formula) BIGMODEL_INLINE_LAMBDA {
    for_each_vector(block, [&](const Place& place) BIGMODEL_INLINE_LAMBDA {
      write(formed, place, value_and_slope_for<T>(formula, z(place)).slope * read(grad_output, place));
    });
  });
}

template <class T>
void form_gradient(const LinearBackwardArgs& args, const LinearBackward<T>& backward) {
  const auto preactivation = matrix<const T>(args.preactivation);
  if (preactivation.data) {
    for_each_rows(preactivation.rows, preactivation.columns, [&](const Block& block) {
      form_gradient(args, backward, block,
                    [&](const Place& place) BIGMODEL_INLINE_LAMBDA { return read(preactivation, place); });
    });
    return;
  }
  load_bias<T>(backward.bias, args.bias, args.weight.size[0]);
  // backward.grad is what it forms.
  run(backward.preactivation, touching(backward.grad, matrix<const T>(args.grad_output)), [&](const Block& block) {
    form_gradient(args, backward, block, [&](const Place& place) BIGMODEL_INLINE_LAMBDA {
      return load(block.sums[0] + place.offset) + load(backward.bias + place.column);
    });
  });
}

template <class T>
void run_backward(const LinearBackwardArgs& args) {
  Arena arena{static_cast<char*>(args.workspace)};
  const LinearBackward<T> backward = plan_backward<T>(args, arena);
  if (args.activation != Activation::none) form_gradient(args, backward);
  if (args.grad_input.data) run_and_store(backward.input, matrix<T>(args.grad_input));
  if (args.grad_weight.data) run_and_store(backward.weight, matrix<T>(args.grad_weight));
  if (args.grad_bias.data) column_sums(backward.grad, static_cast<T*>(args.grad_bias.data), backward.sums);
}

}  // namespace

std::int64_t linear_forward_workspace(const LinearForwardArgs& args) {
  Arena arena;
  with_type_of(args.input.dtype, [&](auto type) { plan_forward<decltype(type)>(args, arena); });
  return arena.most;
}

void linear_forward(const LinearForwardArgs& args) {
  with_type_of(args.input.dtype, [&](auto type) { run_forward<decltype(type)>(args); });
}

std::int64_t linear_backward_workspace(const LinearBackwardArgs& args) {
  Arena arena;
  with_type_of(args.input.dtype, [&](auto type) { plan_backward<decltype(type)>(args, arena); });
  return arena.most;
}

void linear_backward(const LinearBackwardArgs& args) {
  with_type_of(args.input.dtype, [&](auto type) { run_backward<decltype(type)>(args); });
}

std::int64_t linear_packed_bytes(const TensorView& weight) {
  std::int64_t bytes = 0;
  with_type_of(weight.dtype, [&](auto type) {
    using T = decltype(type);
    bytes = packed_lanes<T>(weight.size[1], weight.size[0]) * std::int64_t{sizeof(Lane<T>)};
  });
  return bytes;
}

std::int64_t linear_pack_workspace(const LinearPackArgs&) { return 0; }

void linear_pack(const LinearPackArgs& args) {
  with_type_of(args.weight.dtype, [&](auto type) {
    using T = decltype(type);
    const std::int64_t out_features = args.weight.size[0], in_features = args.weight.size[1];
    // The last panel may be wider than what is left of the weight: equal weights shall give equal bytes.
    const std::int64_t panel = panel_lanes<T>(in_features);
    Lane<T>* const panels = static_cast<Lane<T>*>(args.packed_weight);
    __builtin_memset(panels + packed_lanes<T>(in_features, out_features) - panel, 0, panel * sizeof(Lane<T>));
    pack_chunk<T>(workers_for(out_features * in_features), transposed(matrix<const T>(args.weight)), 0, out_features,
                  panels);
  });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
