#include "cuda/launch.cuh"

namespace bigmodel::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "a question about the device");
  return value;
}

}  // namespace

// The runtime answers from memory: faster than a table of our own with its lock.
Place place(int device, void* stream, bool tf32_allowed) {
  const int capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor, device) + attribute(cudaDevAttrComputeCapabilityMinor, device);
  return {.stream = stream,
          .capability = capability,
          .multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device),
          .shared_memory = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          .tf32 = tf32_allowed && capability >= 80};
}

}  // namespace bigmodel::cuda
