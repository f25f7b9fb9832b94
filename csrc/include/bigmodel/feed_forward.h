// The Transformer's feed-forward layer, two linear layers with an activation between them and an optional gate:
//   Gate::none:    hidden = activation(x w1^T + b1)
//   Gate::hidden:  hidden = activation(x w_gate^T + b_gate) * (x w1^T + b1)          (ReGLU, GeGLU, SwiGLU)
//   Gate::input:   x' = x * sigmoid(x w_gate^T + b_gate);  hidden = activation(x' w1^T + b1)
//   output = dropout(hidden) w2^T + b2 + residual
//
// Shapes: input [rows, width]; w1 [hidden, width]; w2 [out_width, hidden]; w_gate [hidden, width] (Gate::hidden) or
// [width, width] (Gate::input); biases as their weight's rows; residual and output [rows, out_width]. One dtype for
// all (fp32, bf16 or fp16); sums are fp32. Inputs have any strides; outputs are contiguous.
#pragma once

#include "bigmodel/activation.h"
#include "bigmodel/philox.h"
#include "bigmodel/tensor.h"

namespace bigmodel {

enum class Gate : std::int32_t { none, hidden, input };

struct FeedForwardWeights {
  TensorView w1, b1, w2, b2, w_gate, b_gate;  // biases optional; w_gate absent for Gate::none
};

struct FeedForwardForwardArgs {
  TensorView input, residual;
  FeedForwardWeights weights;
  const void* packed_w1 = nullptr;  // of linear_pack, or nullptr: pack on the way
  const void* packed_w2 = nullptr;
  const void* packed_w_gate = nullptr;
  Activation activation = Activation::relu;
  Gate gate = Gate::none;
  Dropout dropout;
  TensorView output;
  // Optional outputs for the backward pass: the arguments of activation and gate, in the input's dtype. What the
  // backward pass can rebuild element by element (hidden, the gated input) is never stored.
  TensorView preactivation;       // [rows, hidden]: x w1^T + b1 (x' for Gate::input)
  TensorView gate_preactivation;  // [rows, hidden] or [rows, width]: x w_gate^T + b_gate
  void* workspace = nullptr;
};

// Gradients that are absent are not computed. grad_residual equals grad_output.
struct FeedForwardBackwardArgs {
  TensorView grad_output;  // any strides; never written
  TensorView input;
  FeedForwardWeights weights;
  TensorView preactivation, gate_preactivation;  // absent: recomputed
  Activation activation = Activation::relu;
  Gate gate = Gate::none;
  Dropout dropout;
  TensorView grad_input, grad_w1, grad_b1, grad_w2, grad_b2, grad_w_gate, grad_b_gate;
  void* workspace = nullptr;
};

}  // namespace bigmodel
