#include <mutex>
#include <vector>

#include "cuda/launch.cuh"

namespace bigmodel::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "a question about the device");
  return value;
}

Place ask(int device) {
  Place place;
  place.capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor, device) + attribute(cudaDevAttrComputeCapabilityMinor, device);
  place.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  place.shared_memory = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return place;
}

}  // namespace

Place place(int device, void* stream) {
  static std::mutex mutex;
  static std::vector<Place> known;
  const std::lock_guard lock(mutex);
  const auto index = static_cast<std::size_t>(device);
  if (known.size() <= index) known.resize(index + 1);
  if (known[index].multiprocessors == 0) known[index] = ask(device);
  Place result = known[index];
  result.stream = stream;
  return result;
}

}  // namespace bigmodel::cuda
