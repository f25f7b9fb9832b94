#include "cuda_place.h"

#include <dlfcn.h>

namespace bigmodel::binding {
namespace {

#if !defined(BIGMODEL_EMULATED)
// A torch without CUDA lacks this function, and this library must load beside it: so it is looked up in the library
// that a torch with CUDA has loaded, never linked.
void* current_stream(const Call& call) {
  using Function = AOTITorchError (*)(std::int32_t device, void** stream);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  call.check(function, "the tensors are on a CUDA device, but this torch has no aoti_torch_get_current_cuda_stream in ",
             "libtorch_cuda.so: expected a torch with CUDA, 2.10 or newer");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(function(call.device_index(), &stream));
  return stream;
}
#endif

}  // namespace

CudaPlace::CudaPlace(const Call& call) {
#if defined(BIGMODEL_EMULATED)
  const std::int32_t device = 0;
  void* const stream = nullptr;
#else
  const std::int32_t device = call.device_index();
  guard_.emplace(device);
  void* const stream = current_stream(call);
#endif
  try {
    place_ = cuda::place(device, stream);
  } catch (const cuda::Error& error) {
    call.fail(error.what());
  }
}

}  // namespace bigmodel::binding
