// What is done with a product before it is stored, on N neighbouring elements of a row at a time: as many as 128 bits
// hold where `packed` says that every row of every matrix can be accessed so, else one.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/philox.cuh"
#include "cuda/rows.cuh"

namespace bigmodel::cuda {

// N where rows are packed, for every element type.
inline constexpr int epilogue_elements = 8;

template <int N, class Body>
__device__ inline void for_each_of(Body body) {
#pragma unroll
  for (int i = 0; i < N; ++i) body(i);
}

// Whether an epilogue reduces rows: then all lanes of a warp call it together, N neighbouring elements of a row in each
// of neighbouring lanes, past the last row and column too.
template <class Epilogue>
inline constexpr bool reduces_rows = requires { Epilogue::reduces_rows; };

template <int N>
__device__ inline void drop(const DropoutRule& rule, std::int64_t row, int column, float (&x)[N]) {
  if (rule.seed) HeadDropout(rule, 0).drop(0, static_cast<int>(row), column, x);
}

//   z = product + bias (stored if wanted);  output = activation(z) factor dropout + residual
template <class T>
struct Epilogue {
  Rows<T> bias, factor, residual, preactivation, output;  // all but output may be absent
  Activation activation = Activation::none;
  bool sigmoid = false;  // in place of the activation
  DropoutRule dropout{};
  int columns = 0;
  bool packed = false;

  template <int N>
  __device__ void operator()(std::int64_t row, int column, float (&x)[N]) const {
    float other[N];
    if (bias.data) {
      load(bias, 0, column, other);
      for_each_of<N>([&](int i) { x[i] += other[i]; });
    }
    if (preactivation.data) store(preactivation, row, column, x);
    if (sigmoid) {
      for_each_of<N>([&](int i) { x[i] = cuda::sigmoid(x[i]); });
    } else {
      with_activation(activation, [&](auto function) { for_each_of<N>([&](int i) { x[i] = function(x[i]).value; }); });
    }
    if (factor.data) {
      load(factor, row, column, other);
      for_each_of<N>([&](int i) { x[i] *= other[i]; });
    }
    drop(dropout, row, column, x);
    if (residual.data) {
      load(residual, row, column, other);
      for_each_of<N>([&](int i) { x[i] += other[i]; });
    }
    store(output, row, column, x);
  }
};

// Of two products that share their left operand, both with a bias and stored if wanted:
//   output = activation(gate) product dropout
template <class T>
struct GatedEpilogue {
  Rows<T> bias, gate_bias, preactivation, gate_preactivation, output;
  Activation activation = Activation::none;
  DropoutRule dropout{};
  int columns = 0;
  bool packed = false;

  template <int N>
  __device__ void operator()(std::int64_t row, int column, float (&x)[N], float (&gate)[N]) const {
    add_bias(bias, column, x);
    add_bias(gate_bias, column, gate);
    if (preactivation.data) store(preactivation, row, column, x);
    if (gate_preactivation.data) store(gate_preactivation, row, column, gate);
    with_activation(activation,
                    [&](auto function) { for_each_of<N>([&](int i) { x[i] *= function(gate[i]).value; }); });
    drop(dropout, row, column, x);
    store(output, row, column, x);
  }

 private:
  template <int N>
  __device__ static void add_bias(const Rows<T>& bias, int column, float (&x)[N]) {
    if (!bias.data) return;
    float other[N];
    load(bias, 0, column, other);
    for_each_of<N>([&](int i) { x[i] += other[i]; });
  }
};

// Of a product that is the gradient of what an activation or a gate gave:
//   Kind::activation: first = product dropout slope(z)
//   Kind::gated:      first = product dropout activation(z),  second = product dropout other slope(z)
//   Kind::sigmoid:    first = product sigmoid(z),             second = product other sigmoid'(z)
template <class T>
struct GradientEpilogue {
  enum class Kind { activation, gated, sigmoid };

  Kind kind = Kind::activation;
  Rows<T> z, other, first, second;
  Activation activation = Activation::none;
  DropoutRule dropout{};
  int columns = 0;
  bool packed = false;

  template <int N>
  __device__ void operator()(std::int64_t row, int column, float (&x)[N]) const {
    float value[N], slope[N], factor[N];
    load(z, row, column, value);
    drop(dropout, row, column, x);
    if (kind == Kind::sigmoid) {
      for_each_of<N>([&](int i) {
        value[i] = cuda::sigmoid(value[i]);
        slope[i] = value[i] * (1.0f - value[i]);
      });
    } else {
      with_activation(activation, [&](auto function) {
        for_each_of<N>([&](int i) {
          const ValueAndSlope both = function(value[i]);
          value[i] = both.value;
          slope[i] = both.slope;
        });
      });
    }
    if (kind == Kind::activation) {
      for_each_of<N>([&](int i) { x[i] *= slope[i]; });
      store(first, row, column, x);
      return;
    }
    load(other, row, column, factor);
    for_each_of<N>([&](int i) {
      value[i] *= x[i];
      slope[i] *= x[i] * factor[i];
    });
    store(first, row, column, value);
    store(second, row, column, slope);
  }
};

}  // namespace bigmodel::cuda
