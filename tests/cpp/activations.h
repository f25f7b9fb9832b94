// Activations as the tests define them, in double.
#pragma once

#include <cmath>

#include "bigmodel/activation.h"

namespace bigmodel::test {

// A sum and the sum of its terms' sizes, which bounds its rounding error.
struct Sum {
  double value = 0.0, size = 0.0;

  void add(double term) {
    value += term;
    size += std::fabs(term);
  }
  void add(const Sum& term, double factor) {
    value += term.value * factor;
    size += term.size * std::fabs(factor);
  }
};

inline double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

inline double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::relu:
      return x > 0.0 ? x : 0.0;
    case Activation::gelu:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case Activation::gelu_tanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::silu:
      return x * sigmoid(x);
    default:
      return x;
  }
}

inline double derivative(Activation activation, double x) {
  if (activation == Activation::relu) return x > 0.0 ? 1.0 : 0.0;
  constexpr double h = 1e-5;  // the others are smooth: central differences, good to 1e-10
  return (activate(activation, x + h) - activate(activation, x - h)) / (2.0 * h);
}

}  // namespace bigmodel::test
