// Where a CUDA call runs: its tensors' device, made current while this lives, and torch's current stream there.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "call.h"
#include "cuda/cuda.h"

namespace bigmodel::binding {

class CudaPlace {
 public:
  explicit CudaPlace(const Call& call);
  const cuda::Place& place() const { return place_; }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  cuda::Place place_;
};

}  // namespace bigmodel::binding
