#include "cuda_place.h"

#include <dlfcn.h>

#include "python_objects.h"

#if defined(BIGMODEL_EMULATED)
// tests/ptx_emulator stands in for a torch with CUDA, and has CPU tensors on a device.
extern "C" std::int32_t ptx_emulator_device_of_tensors();
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(std::int32_t device, void** stream);
#endif

namespace bigmodel::binding {
namespace {

// torch's switch for TF32, which its C interface does not tell: fp32_precision knows of the older switches too, which
// write it. Read for each call, as torch's own products do.
bool tf32_allowed(const Call& call) {
  const PyGILState_STATE state = PyGILState_Ensure();
  static PyObject* matmul;  // torch.backends.cuda.matmul, found under Python's lock
  if (!matmul) matmul = direct::find("torch.backends.cuda", "matmul");
  PyObject* precision = matmul ? PyObject_GetAttrString(matmul, "fp32_precision") : nullptr;
  const bool found = precision && PyUnicode_Check(precision);
  const bool allowed = found && PyUnicode_CompareWithASCIIString(precision, "tf32") == 0;
  Py_XDECREF(precision);
  PyErr_Clear();
  PyGILState_Release(state);
  call.check(found, "this torch has no torch.backends.cuda.matmul.fp32_precision, which says whether TF32 is allowed");
  return allowed;
}

#if defined(BIGMODEL_EMULATED)
std::int32_t device_of(const Call&) { return ptx_emulator_device_of_tensors(); }

AOTITorchError ask_for_current_stream(const Call&, std::int32_t device, void** stream) {
  return aoti_torch_get_current_cuda_stream(device, stream);
}
#else
std::int32_t device_of(const Call& call) { return call.device_index(); }

// A torch without CUDA lacks this function, and this library must load beside it: so it is looked up in the library
// that a torch with CUDA has loaded, never linked.
AOTITorchError ask_for_current_stream(const Call& call, std::int32_t device, void** stream) {
  using Function = AOTITorchError (*)(std::int32_t device, void** stream);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  call.check(function, "the tensors are on a CUDA device, but this torch has no aoti_torch_get_current_cuda_stream in ",
             "libtorch_cuda.so: expected a torch with CUDA, 2.10 or newer");
  return function(device, stream);
}
#endif

}  // namespace

CudaPlace::CudaPlace(const Call& call) : CudaPlace(call, device_of(call)) {}

CudaPlace::CudaPlace(const Call& call, std::int32_t device) : guard_(device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(ask_for_current_stream(call, device, &stream));
  const bool tf32 = call.dtype() == DType::float32 && tf32_allowed(call);
  try {
    place_ = cuda::place(device, stream, tf32);
  } catch (const cuda::Error& error) {
    call.fail(error.what());
  }
}

}  // namespace bigmodel::binding
