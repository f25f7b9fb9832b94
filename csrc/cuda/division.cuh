// Whole numbers divided upwards, on the host and on the device.
#pragma once

namespace bigmodel::cuda {

template <class A, class B>
__host__ __device__ constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

// The next multiple of b that is not below a.
template <class A, class B>
__host__ __device__ constexpr auto round_up(A a, B b) {
  return ceil_div(a, b) * b;
}

}  // namespace bigmodel::cuda
