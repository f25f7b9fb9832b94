// Behind a linear layer's activation: grad_z = grad_output slope(z), element by element, and its sums over the rows,
// which are the bias's gradient.
#pragma once

#include "bigmodel/activation.h"
#include "cuda/pack_rows.h"

namespace bigmodel::cuda {

struct ActivationGradient {
  TensorView grad_output;    // [rows, columns]
  TensorView preactivation;  // z; not read for Activation::none
  Activation activation = Activation::none;
  TensorView grad_z;     // contiguous; absent: not stored
  TensorView grad_bias;  // [columns]; absent: no sums
};

// `place` null: only the memory that it takes is counted.
void run_activation_gradient(const ActivationGradient& work, Workspace& workspace, const Place* place);

}  // namespace bigmodel::cuda
