// Stands in for the CUDA runtime: the functions that nvcc's host code and ours call, and no others, so that a call that
// nobody emulates is a name that the loader does not find. None of them waits for a device or gives memory: what does
// is refused like that too. Layouts and numbers are those of CUDA 13.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "emulator.h"
#include "error.h"
#include "host.h"
#include "names.h"

namespace {

using Status = int;  // cudaError_t
constexpr Status success = 0, invalid_value = 1, invalid_configuration = 9, launch_failure = 719;

struct Fatbinary {  // what __cudaRegisterFatBinary is given
  std::int32_t magic, version;
  const std::byte* data;
  void* file;
};

struct Module {  // of one fat binary, read when its first kernel is asked for
  std::string text, error;
};

struct Function {
  const Module* module = nullptr;
  std::string name;
  std::map<int, int> maximum_dynamic_shared;  // by device, where it was asked for

  const ptx::Program& program() const {
    if (!module->error.empty()) throw ptx::Error(module->error);
    return ptx::Emulator::instance().program(ptx::Emulator::instance().load(module->text), name);
  }
};

struct CallConfiguration {
  ptx::Index3 grid, block;
  std::size_t shared_bytes;
  void* stream;
};

struct Runtime {
  std::vector<const Module*> modules;
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
ptx::Host& host() { return ptx::Host::instance(); }

void note(const char* name, int device) { host().calls.push_back({name, "", device, 0}); }

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

// Bytes of dynamic shared memory that a launch on the current device may have.
std::size_t dynamic_shared_limit(const Function& kernel, const ptx::Program& program) {
  const auto asked = kernel.maximum_dynamic_shared.find(host().current_device);
  if (asked != kernel.maximum_dynamic_shared.end()) return static_cast<std::size_t>(asked->second);
  return static_cast<std::size_t>(emulator().device.shared_bytes_per_block -
                                  static_cast<int>(program.static_shared_bytes));
}

Status launch(const Function& kernel, const CallConfiguration& call, void** arguments) {
  return guarded(launch_failure, [&] {
    const auto stream = reinterpret_cast<std::uint64_t>(call.stream);
    host().calls.push_back({"cudaLaunchKernel", ptx::readable(kernel.name), host().current_device, stream});
    const ptx::Program& program = kernel.program();
    const std::size_t limit = dynamic_shared_limit(kernel, program);
    if (call.shared_bytes > limit) {
      throw ptx::Error("launch of " + kernel.name + ": " + std::to_string(call.shared_bytes) +
                       " bytes of dynamic shared memory; cudaFuncSetAttribute allowed " + std::to_string(limit));
    }
    const ptx::LaunchShape shape{call.grid, call.block, static_cast<std::uint32_t>(call.shared_bytes)};
    host().submit(stream, [prepared = emulator().prepare(program, shape, arguments)] { emulator().run(prepared); });
  });
}

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
  auto* module = new Module;  // lives as long as the process
  try {
    module->text = ptx_of(static_cast<const Fatbinary*>(wrapper)->data);
  } catch (const std::exception& error) {
    module->error = error.what();
  }
  runtime().modules.push_back(module);
  return reinterpret_cast<void**>(module);
}
CUDA_API void __cudaRegisterFatBinaryEnd(void**) {}
CUDA_API void __cudaUnregisterFatBinary(void**) {}
CUDA_API void __cudaRegisterFunction(void** handle, const char* stub, char*, const char* name, int, void*, void*, void*,
                                     void*, int*) {
  runtime().functions[stub] = {reinterpret_cast<Module*>(handle), name};
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
CUDA_API Status cudaFuncSetAttribute(const void* stub, int which, int value) {
  note("cudaFuncSetAttribute", host().current_device);
  return guarded(invalid_value, [&] {
    if (which == 9) return;  // preferred shared memory carveout: a hint
    if (which != 8) throw ptx::Error("cudaFuncSetAttribute: attribute " + std::to_string(which) + " is not emulated");
    const ptx::Program& program = function(stub).program();
    if (value + static_cast<int>(program.static_shared_bytes) > emulator().device.shared_bytes_per_block_optin) {
      throw ptx::Error("cudaFuncSetAttribute: " + std::to_string(value) + " bytes of dynamic shared memory for " +
                       program.name + ", on a device with " +
                       std::to_string(emulator().device.shared_bytes_per_block_optin));
    }
    function(stub).maximum_dynamic_shared[host().current_device] = value;
  });
}
CUDA_API Status cudaDeviceGetAttribute(int* value, int which, int device) {
  note("cudaDeviceGetAttribute", device);
  return guarded(invalid_value, [&] { *value = attribute(which); });
}

CUDA_API Status cudaGetLastError() { return std::exchange(runtime().last, success); }
CUDA_API const char* cudaGetErrorString(Status status) {
  return status == success ? "no error" : runtime().message.c_str();
}
// Not CUDA's: the PTX that libraries have registered, text after text.
CUDA_API const char* ptx_emulator_registered_text() {
  static std::string all;
  all.clear();
  for (const Module* module : runtime().modules) all += module->text + "\n";
  return all.c_str();
}
