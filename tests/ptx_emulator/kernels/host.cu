// Host code in the style of ours: the tensors' device becomes the current one, and the launch goes to torch's stream
// there. `fault` plants one fault, which the checks of hosting.py must find.
#include <cstdint>
#include <string>

#include "cuda/launch.cuh"

extern "C" {
std::int32_t aoti_torch_get_current_cuda_stream(std::int32_t device, void** stream);
std::int32_t aoti_torch_create_device_guard(std::int32_t device, void** guard);
std::int32_t aoti_torch_delete_device_guard(void* guard);
std::int32_t ptx_emulator_device_of_tensors();
}

namespace {

enum Fault { none, default_stream, no_guard, guard_left, value_of_input };

// y = x * x[0]; the factor is read where the kernel runs, or, wrongly, where it was launched.
__global__ void scale_kernel(const float* x, float* y, int count, const float* factor, float baked) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < count) y[i] = x[i] * (factor ? *factor : baked);
}

}  // namespace

extern "C" const char* launch_scale(const float* x, float* y, int count, int fault) {
  static std::string message;
  const std::int32_t device = ptx_emulator_device_of_tensors();
  void *guard = nullptr, *stream = nullptr;
  if (fault != no_guard) aoti_torch_create_device_guard(device, &guard);
  if (fault != default_stream) aoti_torch_get_current_cuda_stream(device, &stream);
  const bool baked = fault == value_of_input;
  message.clear();
  try {
    bigmodel::cuda::launch(&scale_kernel, {.blocks = 1, .threads = 32}, {.stream = stream}, x, y, count,
                           baked ? nullptr : x, baked ? *x : 0.0f);
  } catch (const bigmodel::cuda::Error& error) {
    message = error.what();
  }
  if (guard && fault != guard_left) aoti_torch_delete_device_guard(guard);
  return message.empty() ? nullptr : message.c_str();
}
