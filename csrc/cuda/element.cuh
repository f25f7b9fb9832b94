// Elements as kernels hold them: the device's own 16-bit types, fp32 that products may round, conversion to and from
// fp32, packs of 128 bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "bigmodel/tensor.h"

namespace bigmodel::cuda {

using half = __half;
using bf16 = __nv_bfloat16;

// fp32 in memory, of which tensor cores multiply the first ten bits of the mantissa (TF32).
struct tf32 {
  float value;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(half x) { return __half2float(x); }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
__device__ inline float to_float(tf32 x) { return x.value; }

template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline half from_float<half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline tf32 from_float<tf32>(float x) {
  return {x};
}

// Two neighbours as one register, the first in the low half.
template <class T>
__device__ inline std::uint32_t pack2(float low, float high);
template <>
__device__ inline std::uint32_t pack2<half>(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(both);
}
template <>
__device__ inline std::uint32_t pack2<bf16>(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(both);
}

// As many elements as one 128-bit access moves.
template <class T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T element[size];
};

// Calls body with a value of the element type.
template <class Body>
void with_dtype(DType dtype, Body body) {
  switch (dtype) {
    case DType::float32:
      return body(float{});
    case DType::bfloat16:
      return body(bf16{});
    case DType::float16:
      return body(half{});
    default:
      return;  // no op computes in booleans or integers
  }
}

}  // namespace bigmodel::cuda
