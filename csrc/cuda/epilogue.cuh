// What is done with a product before it is stored, on N neighbouring elements of a row at a time:
//   z = product + bias (stored if wanted);  output = activation(z) factor dropout + residual
#pragma once

#include "cuda/activation.cuh"
#include "cuda/philox.cuh"
#include "cuda/rows.cuh"

namespace bigmodel::cuda {

template <class T>
struct Epilogue {
  Rows<T> bias, factor, residual, preactivation, output;  // all but output may be absent
  Activation activation = Activation::none;
  bool sigmoid_factor = false;  // in place of the activation: output = sigmoid(z) factor
  DropoutRule dropout{};
  int columns = 0;
  bool packed = false;  // every row of every matrix can be accessed in chunks of 128 bits

  // Columns from the last on are not touched.
  template <int N>
  __device__ void operator()(std::int64_t row, int column, float (&x)[N]) const {
    if (packed) {
      finish(row, column, x);
      return;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float one[1] = {x[i]};
      if (column + i < columns) finish(row, column + i, one);
    }
  }

 private:
  template <int N>
  __device__ void finish(std::int64_t row, int column, float (&x)[N]) const {
    if (column >= columns) return;
    float other[N];
    if (bias.data) {
      load(bias, 0, column, other);
      for_each(x, [&](int i) { x[i] += other[i]; });
    }
    if (preactivation.data) store(preactivation, row, column, x);
    if (sigmoid_factor) {
      for_each(x, [&](int i) { x[i] = sigmoid(x[i]); });
    } else {
      with_activation(activation, [&](auto function) { for_each(x, [&](int i) { x[i] = function(x[i]).value; }); });
    }
    if (factor.data) {
      load(factor, row, column, other);
      for_each(x, [&](int i) { x[i] *= other[i]; });
    }
    if (dropout.seed) {
      const HeadDropout drop(dropout, 0);
      for_each(x, [&](int i) { x[i] *= drop.factor(0, static_cast<int>(row), column + i); });
    }
    if (residual.data) {
      load(residual, row, column, other);
      for_each(x, [&](int i) { x[i] += other[i]; });
    }
    store(output, row, column, x);
  }

  template <int N, class Body>
  __device__ static void for_each(float (&)[N], Body body) {
#pragma unroll
    for (int i = 0; i < N; ++i) body(i);
  }
};

}  // namespace bigmodel::cuda
