// Sums over rows, such as the gradients of a bias, that blocks of rows have left one by one.
#pragma once

#include "bigmodel/tensor.h"
#include "cuda/cuda.h"

namespace bigmodel::cuda {

// sums [columns] = the sum over the blocks of partial [blocks, columns], in this order.
void add_partials(const float* partial, int blocks, const TensorView& sums, const Place& place);

}  // namespace bigmodel::cuda
