// The whole: modules, memory, launches, what was found and counted. One per process; the stand-in for the CUDA runtime
// and Python share it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "block.h"

namespace ptx {

// What host code can ask about the device.
struct Device {
  int major = 8, minor = 0;
  int multiprocessors = 108;
  int shared_bytes_per_block = 48 << 10;  // without asking for more
  int shared_bytes_per_block_optin = 163 << 10;
  int shared_bytes_per_multiprocessor = 164 << 10;
  int l2_bytes = 40 << 20;
};

struct KernelCounters {
  std::string kernel;
  std::uint64_t launches = 0, blocks = 0;
  std::uint32_t threads = 0, dynamic_shared_bytes = 0;  // of a block of the last launch
  Counters counters;
  const Program* program = nullptr;
};

struct LaunchShape {
  Index3 grid, block;
  std::uint32_t dynamic_shared_bytes = 0;
};

class Emulator {
 public:
  static Emulator& instance();

  // The module with this text; the same text is read once.
  LoadedModule& load(const std::string& text);
  const Program& program(LoadedModule& module, const std::string& kernel);
  // A launch that can be, with its own copy of the arguments: one pointer per parameter, to its bytes.
  Launch prepare(const Program& program, const LaunchShape& shape, const void* const* arguments);
  void run(Launch launch);

  // JSON
  std::string take_hazards();
  std::string take_counters(bool by_line);
  std::string take_calls();

  // Buffers come and go from any thread, but not during a launch.
  void add_buffer(std::uint64_t address, std::uint64_t bytes, std::string name, bool initialised, bool read_only);
  void remove_buffer(std::uint64_t address);
  void clear_buffers();

  GlobalMemory memory;
  Device device;
  int threads = 2;
  std::uint64_t step_limit = 200'000'000;

 private:
  void check(const Program& program, const LaunchShape& shape) const;
  void run_blocks(const Launch& launch);

  std::mutex mutex_;
  std::uint64_t launches_ = 0;
  std::map<std::string, std::unique_ptr<LoadedModule>> modules_;
  Hazards hazards_;
  std::map<std::string, KernelCounters> counters_;
};

}  // namespace ptx
