// What Python calls, by ctypes. A function that can fail returns its error's text, or nullptr.
#include <exception>
#include <string>

#include "emulator.h"
#include "error.h"
#include "host.h"

namespace {

thread_local std::string answer;

template <class F>
const char* guarded(F f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    answer = error.what();
    return answer.c_str();
  }
}

ptx::Emulator& emulator() { return ptx::Emulator::instance(); }
ptx::Host& host() { return ptx::Host::instance(); }

}  // namespace

#define PTX_EMULATOR_API extern "C" [[gnu::visibility("default")]]

PTX_EMULATOR_API void ptx_emulator_add_buffer(std::uint64_t address, std::uint64_t bytes, const char* name,
                                              int initialised, int read_only) {
  emulator().add_buffer(address, bytes, name, initialised != 0, read_only != 0);
}
PTX_EMULATOR_API void ptx_emulator_remove_buffer(std::uint64_t address) { emulator().remove_buffer(address); }
PTX_EMULATOR_API void ptx_emulator_clear_buffers() { emulator().clear_buffers(); }

PTX_EMULATOR_API const char* ptx_emulator_launch(const char* text, const char* kernel, const std::uint32_t* grid,
                                                 const std::uint32_t* block, std::uint32_t shared_bytes,
                                                 const void* const* arguments) {
  return guarded([&] {
    const ptx::Program& program = emulator().program(emulator().load(text), kernel);
    const ptx::LaunchShape shape{{grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_bytes};
    emulator().run(emulator().prepare(program, shape, arguments));
  });
}

// "name:8,8,4;other:8": kernels with the bytes of their parameters.
PTX_EMULATOR_API const char* ptx_emulator_kernels(const char* text, const char** result) {
  return guarded([&] {
    static thread_local std::string list;
    list.clear();
    for (const ptx::Kernel& kernel : emulator().load(text).text.kernels) {
      list += (list.empty() ? "" : ";") + kernel.name + ":";
      for (std::size_t i = 0; i < kernel.parameters.size(); ++i)
        list += (i ? "," : "") + std::to_string(kernel.parameters[i].bytes);
    }
    *result = list.c_str();
  });
}

PTX_EMULATOR_API const char* ptx_emulator_take_hazards() { return (answer = emulator().take_hazards()).c_str(); }
PTX_EMULATOR_API const char* ptx_emulator_take_counters(int by_line) {
  return (answer = emulator().take_counters(by_line != 0)).c_str();
}

PTX_EMULATOR_API void ptx_emulator_set_threads(int threads) { emulator().threads = threads; }
PTX_EMULATOR_API void ptx_emulator_set_step_limit(std::uint64_t steps) { emulator().step_limit = steps; }
PTX_EMULATOR_API void ptx_emulator_set_device(int major, int minor, int multiprocessors, int shared_bytes_optin,
                                              int l2_bytes) {
  ptx::Device& device = emulator().device;
  device.major = major, device.minor = minor;
  device.multiprocessors = multiprocessors;
  device.shared_bytes_per_block_optin = shared_bytes_optin;
  device.shared_bytes_per_multiprocessor = shared_bytes_optin + 1024;
  device.l2_bytes = l2_bytes;
}

PTX_EMULATOR_API const char* ptx_emulator_take_calls() { return (answer = emulator().take_calls()).c_str(); }
PTX_EMULATOR_API int ptx_emulator_current_device() { return host().current_device; }
PTX_EMULATOR_API void ptx_emulator_set_current_device(int device) { host().current_device = device; }
PTX_EMULATOR_API void ptx_emulator_set_device_of_tensors(int device) { host().device_of_tensors = device; }
PTX_EMULATOR_API void ptx_emulator_set_torch_stream(int device, std::uint64_t stream) {
  host().torch_streams[device] = stream;
}
PTX_EMULATOR_API void ptx_emulator_begin_capture(std::uint64_t stream) { host().begin_capture(stream); }
PTX_EMULATOR_API void ptx_emulator_end_capture() { host().end_capture(); }
PTX_EMULATOR_API const char* ptx_emulator_replay() {
  return guarded([] { host().replay(); });
}
