// The only place that starts kernels. Every error of CUDA becomes an exception with its text.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "cuda/cuda.h"
#include "cuda/division.cuh"
#include "cuda/element.cuh"

namespace bigmodel::cuda {

inline void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // or the next to ask for it, torch after a launch of its own, would take ours for its own
  throw Error(std::string("CUDA refused ") + what + ": " + cudaGetErrorString(code));
}

// Products of bf16 and TF32 on tensor cores came with sm_80; where TF32 is missing, Place does not allow it.
template <class T>
void check_products(const Place& place) {
  if (std::is_same_v<T, bf16> && place.capability < 80) {
    throw Error("products of bfloat16 need compute capability 8.0 or more, and this device has " +
                std::to_string(place.capability / 10) + '.' + std::to_string(place.capability % 10));
  }
}

struct Launch {
  std::int64_t blocks;  // a grid of one dimension: kernels divide the block's number themselves
  int threads;
  std::int64_t shared_bytes = 0;  // dynamic shared memory
};

template <class... Parameters>
void launch(void (*kernel)(Parameters...), const Launch& shape, const Place& place,
            const std::type_identity_t<Parameters>&... parameters) {
  constexpr std::int64_t most_blocks = 0x7fffffff, shared_without_asking = 48 * 1024;
  if (shape.blocks == 0) return;
  if (shape.blocks > most_blocks) {
    throw Error("this needs " + std::to_string(shape.blocks) + " blocks, more than a grid holds");
  }
  const void* const function = reinterpret_cast<const void*>(kernel);
  const auto shared_bytes = static_cast<int>(shape.shared_bytes);
  if (shape.shared_bytes > shared_without_asking) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "a kernel's shared memory");
  }
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&parameters))...};
  check(
      cudaLaunchKernel(function, dim3(static_cast<unsigned>(shape.blocks)), dim3(static_cast<unsigned>(shape.threads)),
                       pointers, static_cast<std::size_t>(shared_bytes), static_cast<cudaStream_t>(place.stream)),
      "a kernel's launch");
}

}  // namespace bigmodel::cuda
