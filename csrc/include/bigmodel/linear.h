// output = activation(input weight^T + bias) + residual.
//
// Shapes: input [rows, in_features]; weight [out_features, in_features]; bias [out_features]; residual and output
// [rows, out_features]. input, weight, bias, residual and output share one dtype (fp32, bf16 or fp16); sums are fp32.
// Inputs have any strides; outputs are contiguous.
#pragma once

#include "bigmodel/activation.h"
#include "bigmodel/tensor.h"

namespace bigmodel {

struct LinearForwardArgs {
  TensorView input, weight, bias, residual;
  const void* packed_weight = nullptr;  // made by linear_pack from this weight, or nullptr: pack on the way
  Activation activation = Activation::none;
  TensorView output;
  TensorView preactivation;  // optional output [rows, out_features]: input weight^T + bias, for the backward pass
  void* workspace = nullptr;
};

// Gradients that are absent are not computed. grad_residual equals grad_output and is not computed here.
struct LinearBackwardArgs {
  TensorView grad_output;  // any strides; never written
  TensorView input, weight, bias;
  TensorView preactivation;  // absent: recomputed when an activation needs it
  Activation activation = Activation::none;
  TensorView grad_input, grad_weight, grad_bias;
  void* workspace = nullptr;
};

// Lays a weight out for the micro-kernel of the CPU target in use: out_features x in_features -> opaque bytes.
struct LinearPackArgs {
  TensorView weight;
  void* packed_weight = nullptr;  // of linear_packed_bytes(weight)
};

}  // namespace bigmodel
