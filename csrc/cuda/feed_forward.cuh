// The first layer of feed_forward, which the backward pass computes again where the forward pass saved nothing.
#pragma once

#include <type_traits>

#include "bigmodel/feed_forward.h"
#include "cuda/matrix_product.cuh"

namespace bigmodel::cuda {

struct FeedForwardShape {
  std::int64_t rows, width, hidden, out_width;

  FeedForwardShape(const TensorView& input, const FeedForwardWeights& weights)
      : rows(input.size[0]), width(input.size[1]), hidden(weights.w1.size[0]), out_width(weights.w2.size[0]) {}
};

struct FirstLayer {
  TensorView input;
  FeedForwardWeights weights;
  Activation activation;
  Gate gate;
  Dropout dropout;
};

template <class T>
TensorView take_matrix(Workspace& workspace, DType dtype, std::int64_t rows, std::int64_t columns) {
  return matrix_at(workspace.take<T>(rows * columns), dtype, rows, columns);
}

// Gate::input: x' = x sigmoid(x w_gate^T + b_gate), whose preactivation is stored if it is present.
template <class T>
TensorView gated_input(const FirstLayer& layer, const TensorView& gate_preactivation, Workspace& workspace,
                       const Place* place) {
  const TensorView &x = layer.input, bias = as_row(layer.weights.b_gate);
  const TensorView gated = take_matrix<T>(workspace, x.dtype, x.size[0], x.size[1]);
  const Epilogue<T> epilogue{.bias = Rows<T>(bias),
                             .factor = Rows<T>(x),
                             .preactivation = Rows<T>(gate_preactivation),
                             .output = Rows<T>(gated),
                             .sigmoid = true,
                             .columns = static_cast<int>(x.size[1]),
                             .packed = all_packed<T>(bias, x, gate_preactivation, gated)};
  multiply_matrices<T>(x, layer.weights.w_gate, epilogue, workspace, place);
  return gated;
}

// Gate::hidden without tensor cores: two products, the first of which leaves its activation.
template <class T>
void run_gated_plain(const FirstLayer& layer, const TensorView& preactivation, const TensorView& gate_preactivation,
                     const TensorView& hidden, Workspace& workspace, const Place* place) {
  const TensorView bias = as_row(layer.weights.b1), gate_bias = as_row(layer.weights.b_gate);
  const auto columns = static_cast<int>(hidden.size[1]);
  const TensorView gate = take_matrix<T>(workspace, hidden.dtype, hidden.size[0], hidden.size[1]);
  const Epilogue<T> of_gate{.bias = Rows<T>(gate_bias),
                            .preactivation = Rows<T>(gate_preactivation),
                            .output = Rows<T>(gate),
                            .activation = layer.activation,
                            .columns = columns,
                            .packed = all_packed<T>(gate_bias, gate_preactivation, gate)};
  multiply_matrices<T>(layer.input, layer.weights.w_gate, of_gate, workspace, place);
  const Epilogue<T> of_hidden{.bias = Rows<T>(bias),
                              .factor = Rows<T>(gate),
                              .preactivation = Rows<T>(preactivation),
                              .output = Rows<T>(hidden),
                              .dropout = DropoutRule(layer.dropout),
                              .columns = columns,
                              .packed = all_packed<T>(bias, gate, preactivation, hidden)};
  multiply_matrices<T>(layer.input, layer.weights.w1, of_hidden, workspace, place);
}

// hidden, with dropout, and the preactivations where they are present. Returns what w1 was multiplied with.
template <class T>
TensorView run_first_layer(const FirstLayer& layer, const TensorView& preactivation,
                           const TensorView& gate_preactivation, const TensorView& hidden, Workspace& workspace,
                           const Place* place) {
  const TensorView bias = as_row(layer.weights.b1), gate_bias = as_row(layer.weights.b_gate);
  const auto columns = static_cast<int>(hidden.size[1]);
  if (layer.gate == Gate::hidden) {
    if constexpr (!std::is_same_v<T, float>) {
      const GatedEpilogue<T> epilogue{
          .bias = Rows<T>(bias),
          .gate_bias = Rows<T>(gate_bias),
          .preactivation = Rows<T>(preactivation),
          .gate_preactivation = Rows<T>(gate_preactivation),
          .output = Rows<T>(hidden),
          .activation = layer.activation,
          .dropout = DropoutRule(layer.dropout),
          .columns = columns,
          .packed = all_packed<T>(bias, gate_bias, preactivation, gate_preactivation, hidden)};
      multiply_gated<T>(layer.input, layer.weights.w1, layer.weights.w_gate, epilogue, workspace, place);
    } else {
      run_gated_plain<T>(layer, preactivation, gate_preactivation, hidden, workspace, place);
    }
    return layer.input;
  }
  const TensorView x =
      layer.gate == Gate::input ? gated_input<T>(layer, gate_preactivation, workspace, place) : layer.input;
  const Epilogue<T> epilogue{.bias = Rows<T>(bias),
                             .preactivation = Rows<T>(preactivation),
                             .output = Rows<T>(hidden),
                             .activation = layer.activation,
                             .dropout = DropoutRule(layer.dropout),
                             .columns = columns,
                             .packed = all_packed<T>(bias, preactivation, hidden)};
  multiply_matrices<T>(x, layer.weights.w1, epilogue, workspace, place);
  return x;
}

}  // namespace bigmodel::cuda
