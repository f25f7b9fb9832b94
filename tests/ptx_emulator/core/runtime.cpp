// Stands in for the CUDA runtime: the functions that nvcc's host code and ours call, and no others, so that a call that
// nobody emulates is a name that the loader does not find. Layouts and numbers are those of CUDA 13.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "emulator.h"
#include "error.h"

namespace {

using Status = int;  // cudaError_t
constexpr Status success = 0, invalid_value = 1, invalid_configuration = 9, invalid_device = 101, launch_failure = 719;

struct Fatbinary {  // what __cudaRegisterFatBinary is given
  std::int32_t magic, version;
  const std::byte* data;
  void* file;
};

struct Function {
  ptx::LoadedModule* module = nullptr;
  std::string name;
  int maximum_dynamic_shared = -1;  // -1: nothing was asked for
};

struct CallConfiguration {
  ptx::Index3 grid, block;
  std::size_t shared_bytes;
  void* stream;
};

struct Runtime {
  std::map<const void*, Function> functions;  // by their host stub
  std::vector<CallConfiguration> calls;
  Status last = success;
  std::string message;  // of the last failure

  Status fail(Status status, const std::string& what) {
    message = what;
    return last = status;
  }
};

Runtime& runtime() {
  static Runtime instance;
  return instance;
}
ptx::Emulator& emulator() { return ptx::Emulator::instance(); }

template <class T>
T read(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

// The PTX in a fat binary: a header of 16 bytes and entries, each with a header of its own; kind 1 is PTX.
std::string ptx_of(const std::byte* data) {
  if (read<std::uint32_t>(data) != 0xba55ed50u) throw ptx::Error("this is not a fat binary");
  const std::byte* end = data + read<std::uint16_t>(data + 6) + read<std::uint64_t>(data + 8);
  for (const std::byte* entry = data + read<std::uint16_t>(data + 6); entry < end;) {
    const auto kind = read<std::uint16_t>(entry);
    const auto header = read<std::uint32_t>(entry + 4);
    const auto size = read<std::uint64_t>(entry + 8);
    const auto compressed = read<std::uint32_t>(entry + 16);
    if (kind == 1) {
      if (compressed != 0) throw ptx::Error("the PTX is compressed: compile with --no-compress");
      const char* text = reinterpret_cast<const char*>(entry + header);
      return std::string(text, strnlen(text, size));
    }
    entry += header + size;
  }
  throw ptx::Error("the fat binary holds no PTX: compile with -gencode arch=compute_80,code=compute_80");
}

Function& function(const void* stub) {
  const auto found = runtime().functions.find(stub);
  if (found == runtime().functions.end()) throw ptx::Error("a kernel that was never registered");
  return found->second;
}

template <class F>
Status guarded(Status status, F f) {
  try {
    f();
    return success;
  } catch (const std::exception& error) {
    return runtime().fail(status, error.what());
  }
}

Status launch(const Function& kernel, const CallConfiguration& call, void** arguments) {
  return guarded(launch_failure, [&] {
    const ptx::Program& program = emulator().program(*kernel.module, kernel.name);
    const auto limit = static_cast<std::size_t>(kernel.maximum_dynamic_shared >= 0
                                                    ? kernel.maximum_dynamic_shared
                                                    : emulator().device.shared_bytes_per_block -
                                                          static_cast<int>(program.static_shared_bytes));
    if (call.shared_bytes > limit) {
      throw ptx::Error("launch of " + kernel.name + ": " + std::to_string(call.shared_bytes) +
                       " bytes of dynamic shared memory; cudaFuncSetAttribute allowed " + std::to_string(limit));
    }
    emulator().launch(program, {call.grid, call.block, static_cast<std::uint32_t>(call.shared_bytes)}, arguments);
  });
}

struct FunctionAttributes {  // cudaFuncAttributes
  std::size_t shared_bytes, constant_bytes, local_bytes;
  int maximum_threads, registers, ptx_version, binary_version, cache_mode, maximum_dynamic_shared;
};

struct LaunchConfiguration {  // cudaLaunchConfig_t
  ptx::Index3 grid, block;
  std::size_t shared_bytes;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};

int attribute(int number) {
  const ptx::Device& device = emulator().device;
  switch (number) {
    case 1:
      return 1024;  // threads per block
    case 8:
      return device.shared_bytes_per_block;
    case 10:
      return ptx::warp_size;
    case 12:
      return 65536;  // registers per block
    case 16:
      return device.multiprocessors;
    case 38:
      return device.l2_bytes;
    case 39:
      return device.major == 8 && device.minor > 0 ? 1536 : 2048;  // threads per multiprocessor
    case 75:
      return device.major;
    case 76:
      return device.minor;
    case 81:
      return device.shared_bytes_per_multiprocessor;
    case 82:
      return 65536;  // registers per multiprocessor
    case 97:
      return device.shared_bytes_per_block_optin;
    case 106:
      return device.major == 8 && device.minor > 0 ? 24 : 32;  // blocks per multiprocessor
    case 111:
      return 1024;  // shared memory that the system keeps per block
    default:
      throw ptx::Error("cudaDeviceGetAttribute: attribute " + std::to_string(number) + " is not emulated");
  }
}

}  // namespace

#define CUDA_API extern "C" [[gnu::visibility("default")]]

CUDA_API void** __cudaRegisterFatBinary(void* wrapper) {
  auto* module = new ptx::LoadedModule*(nullptr);  // handle; lives as long as the process
  try {
    *module = &emulator().load(ptx_of(static_cast<const Fatbinary*>(wrapper)->data));
  } catch (const std::exception& error) {
    runtime().fail(launch_failure, error.what());
  }
  return reinterpret_cast<void**>(module);
}
CUDA_API void __cudaRegisterFatBinaryEnd(void**) {}
CUDA_API void __cudaUnregisterFatBinary(void**) {}
CUDA_API void __cudaRegisterFunction(void** handle, const char* stub, char*, const char* name, int, void*, void*, void*,
                                     void*, int*) {
  runtime().functions[stub] = {*reinterpret_cast<ptx::LoadedModule**>(handle), name};
}

CUDA_API unsigned __cudaPushCallConfiguration(ptx::Index3 grid, ptx::Index3 block, std::size_t shared_bytes,
                                              void* stream) {
  runtime().calls.push_back({grid, block, shared_bytes, stream});
  return 0;
}
CUDA_API Status __cudaPopCallConfiguration(ptx::Index3* grid, ptx::Index3* block, std::size_t* shared_bytes,
                                           void* stream) {
  if (runtime().calls.empty()) return runtime().fail(invalid_configuration, "a launch without a configuration");
  const CallConfiguration call = runtime().calls.back();
  runtime().calls.pop_back();
  *grid = call.grid, *block = call.block, *shared_bytes = call.shared_bytes;
  std::memcpy(stream, &call.stream, sizeof(void*));
  return success;
}
CUDA_API Status __cudaGetKernel(const void** kernel, const void* stub) {
  *kernel = stub;
  return success;
}
CUDA_API Status cudaLaunchKernel(const void* stub, ptx::Index3 grid, ptx::Index3 block, void** arguments,
                                 std::size_t shared_bytes, void* stream) {
  return guarded(invalid_value, [&] { function(stub); })
             ? runtime().last
             : launch(function(stub), {grid, block, shared_bytes, stream}, arguments);
}
CUDA_API Status __cudaLaunchKernel(const void* kernel, ptx::Index3 grid, ptx::Index3 block, void** arguments,
                                   std::size_t shared_bytes, void* stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}
CUDA_API Status cudaLaunchKernelExC(const LaunchConfiguration* call, const void* stub, void** arguments) {
  if (call->attribute_count != 0) return runtime().fail(invalid_value, "launch attributes are not emulated");
  return cudaLaunchKernel(stub, call->grid, call->block, arguments, call->shared_bytes, call->stream);
}

CUDA_API Status cudaFuncSetAttribute(const void* stub, int which, int value) {
  return guarded(invalid_value, [&] {
    if (which == 9) return;  // preferred shared memory carveout: a hint
    if (which != 8) throw ptx::Error("cudaFuncSetAttribute: attribute " + std::to_string(which) + " is not emulated");
    const ptx::Program& program = emulator().program(*function(stub).module, function(stub).name);
    if (value + static_cast<int>(program.static_shared_bytes) > emulator().device.shared_bytes_per_block_optin) {
      throw ptx::Error("cudaFuncSetAttribute: " + std::to_string(value) + " bytes of dynamic shared memory for " +
                       program.name + ", on a device with " +
                       std::to_string(emulator().device.shared_bytes_per_block_optin));
    }
    function(stub).maximum_dynamic_shared = value;
  });
}
CUDA_API Status cudaFuncGetAttributes(FunctionAttributes* attributes, const void* stub) {
  return guarded(invalid_value, [&] {
    const ptx::Program& program = emulator().program(*function(stub).module, function(stub).name);
    std::memset(static_cast<void*>(attributes), 0, sizeof(*attributes));
    attributes->shared_bytes = program.static_shared_bytes;
    attributes->local_bytes = program.local_bytes;
    attributes->maximum_threads = program.maximum_threads ? program.maximum_threads : 1024;
    attributes->registers = 255;  // unknown before ptxas
    attributes->ptx_version = attributes->binary_version = 10 * emulator().device.major + emulator().device.minor;
    attributes->maximum_dynamic_shared = function(stub).maximum_dynamic_shared;
  });
}
// By threads and shared memory; registers are not known before ptxas.
CUDA_API Status cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* stub, int threads,
                                                                       std::size_t shared_bytes, unsigned) {
  return guarded(invalid_value, [&] {
    const ptx::Program& program = emulator().program(*function(stub).module, function(stub).name);
    const int warps = (threads + ptx::warp_size - 1) / ptx::warp_size;
    const int shared = static_cast<int>(shared_bytes + program.static_shared_bytes) + attribute(111);
    *blocks = std::min({attribute(39) / (warps * ptx::warp_size), attribute(81) / shared, attribute(106)});
  });
}
CUDA_API Status cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* stub, int threads,
                                                              std::size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, stub, threads, shared_bytes, 0);
}

CUDA_API Status cudaGetDevice(int* device) {
  *device = 0;
  return success;
}
CUDA_API Status cudaSetDevice(int device) {
  return device == 0 ? success : runtime().fail(invalid_device, "there is only device 0");
}
CUDA_API Status cudaGetDeviceCount(int* count) {
  *count = 1;
  return success;
}
CUDA_API Status cudaDeviceGetAttribute(int* value, int which, int) {
  return guarded(invalid_value, [&] { *value = attribute(which); });
}

CUDA_API Status cudaGetLastError() { return std::exchange(runtime().last, success); }
CUDA_API Status cudaPeekAtLastError() { return runtime().last; }
CUDA_API const char* cudaGetErrorString(Status status) {
  return status == success ? "no error" : runtime().message.c_str();
}
CUDA_API const char* cudaGetErrorName(Status status) { return status == success ? "cudaSuccess" : "cudaError"; }

CUDA_API Status cudaMemsetAsync(void* at, int value, std::size_t bytes, void*) {
  const auto address = reinterpret_cast<std::uint64_t>(at);
  ptx::Buffer* buffer = emulator().memory.find(address);
  if (bytes != 0 && (buffer == nullptr || !buffer->contains(address, bytes))) {
    return runtime().fail(
        invalid_value, "[ptx_emulator] cudaMemsetAsync of " + std::to_string(bytes) + " bytes outside of every buffer");
  }
  std::memset(at, value, bytes);
  if (bytes != 0) buffer->wrote(address, bytes);
  return success;
}
CUDA_API Status cudaStreamSynchronize(void*) { return runtime().last; }
CUDA_API Status cudaDeviceSynchronize() { return runtime().last; }
