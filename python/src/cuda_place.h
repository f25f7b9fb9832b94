// Where a CUDA call runs: its tensors' device, made current while this lives, and torch's current stream there.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <cstdint>

#include "call.h"
#include "cuda/cuda.h"

namespace bigmodel::binding {

class CudaPlace {
 public:
  explicit CudaPlace(const Call& call);
  const cuda::Place& place() const { return place_; }

 private:
  CudaPlace(const Call& call, std::int32_t device);

  torch::stable::accelerator::DeviceGuard guard_;
  cuda::Place place_;
};

}  // namespace bigmodel::binding
