// Stands in for a torch with CUDA: the functions of its C interface by which our host code asks for a device and its
// current stream. This library is loaded before those that ask, so that they find these functions and not the ones of a
// torch without CUDA, which refuse.
#include <cstdint>
#include <memory>

#include "host.h"

namespace {

ptx::Host& host() { return ptx::Host::instance(); }

struct Guard {
  int before;
};

}  // namespace

#define TORCH_API extern "C" [[gnu::visibility("default")]] std::int32_t

TORCH_API aoti_torch_get_current_cuda_stream(std::int32_t device, void** stream) {
  if (device < 0 || device >= ptx::Host::devices) return 1;
  *stream = reinterpret_cast<void*>(host().torch_streams[device]);
  return 0;
}
TORCH_API aoti_torch_create_device_guard(std::int32_t device, Guard** guard) {
  if (device < 0 || device >= ptx::Host::devices) return 1;
  *guard = new Guard{host().current_device};
  host().current_device = device;
  return 0;
}
TORCH_API aoti_torch_delete_device_guard(Guard* guard) {
  const std::unique_ptr<Guard> owned(guard);
  host().current_device = guard->before;
  return 0;
}

// Not torch's: CPU tensors are on this device here.
TORCH_API ptx_emulator_device_of_tensors() { return host().device_of_tensors; }
