#include "emulator.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>

#include "error.h"
#include "names.h"

namespace ptx {

Emulator& Emulator::instance() {
  static Emulator emulator;
  return emulator;
}

LoadedModule& Emulator::load(const std::string& text) {
  std::unique_ptr<LoadedModule>& module = modules_[text];
  if (module) return *module;
  auto made = std::make_unique<LoadedModule>();
  made->text = parse(text);
  for (const Variable& variable : made->text.variables) {
    if (variable.space == "shared") continue;
    auto& bytes = made->globals[variable.name] =
        std::make_unique<std::byte[]>(std::max<std::int64_t>(variable.bytes, 1));
    std::memcpy(bytes.get(), variable.initial.data(), variable.initial.size());
  }
  module = std::move(made);
  return *module;
}

const Program& Emulator::program(LoadedModule& module, const std::string& name) {
  if (const auto found = module.programs.find(name); found != module.programs.end()) return found->second;
  for (const Kernel& kernel : module.text.kernels) {
    if (kernel.name == name) return module.programs[name] = decode(kernel, module);
  }
  throw Error("kernel " + readable(name) + " is not in the PTX");
}

void Emulator::check(const Program& program, const LaunchShape& shape) const {
  const auto fail = [&](const std::string& what) { throw Error("launch of " + program.name + ": " + what); };
  const Index3 &block = shape.block, &grid = shape.grid;
  const std::uint64_t threads = std::uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64)
    fail("blocks have " + std::to_string(threads) + " threads; 1 to 1024 are possible");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) fail("the grid is empty");
  if (grid.y > 65535 || grid.z > 65535) fail("grid.y and grid.z can be 65535 at most");
  const int* required = program.required_threads;
  if (required[0] &&
      (block.x != static_cast<std::uint32_t>(required[0]) || block.y != static_cast<std::uint32_t>(required[1]) ||
       block.z != static_cast<std::uint32_t>(required[2]))) {
    fail("its .reqntid is another number of threads");
  }
  if (program.maximum_threads && threads > static_cast<std::uint64_t>(program.maximum_threads))
    fail("more threads than its .maxntid");
  const std::uint32_t shared = program.static_shared_bytes + shape.dynamic_shared_bytes;
  if (shared > static_cast<std::uint32_t>(device.shared_bytes_per_block_optin)) {
    fail(std::to_string(shared) + " bytes of shared memory; the device has " +
         std::to_string(device.shared_bytes_per_block_optin));
  }
}

Launch Emulator::prepare(const Program& program, const LaunchShape& shape, const void* const* arguments) {
  check(program, shape);
  Launch launch;
  launch.program = &program;
  launch.memory = &memory;
  launch.hazards = &hazards_;
  launch.grid = shape.grid;
  launch.block = shape.block;
  launch.dynamic_shared_bytes = shape.dynamic_shared_bytes;
  launch.step_limit = step_limit;
  launch.fresh_file = fresh_file(program);
  launch.parameters.resize(program.parameter_bytes);
  for (std::size_t i = 0; i < program.parameters.size(); ++i) {
    std::memcpy(launch.parameters.data() + program.parameter_offsets[i], arguments[i], program.parameters[i].bytes);
  }
  return launch;
}

void Emulator::run(Launch launch) {
  const std::lock_guard lock(mutex_);
  const Program& program = *launch.program;
  for (const Variable& variable : program.module->text.variables) {
    if (variable.space == "shared") continue;
    const auto address = reinterpret_cast<std::uint64_t>(program.module->globals.at(variable.name).get());
    if (memory.find(address) == nullptr || !memory.find(address)->contains(address, variable.bytes)) {
      memory.add(address, variable.bytes, variable.name, true, variable.space == "const");
    }
  }
  launch.number = program.has_global_atomics ? 0 : ++launches_;
  run_blocks(launch);
}

void Emulator::add_buffer(std::uint64_t address, std::uint64_t bytes, std::string name, bool initialised,
                          bool read_only) {
  const std::lock_guard lock(mutex_);
  memory.add(address, bytes, std::move(name), initialised, read_only);
}
void Emulator::remove_buffer(std::uint64_t address) {
  const std::lock_guard lock(mutex_);
  memory.remove(address);
}
void Emulator::clear_buffers() {
  const std::lock_guard lock(mutex_);
  memory.clear();
}

void Emulator::run_blocks(const Launch& launch) {
  const Index3& grid = launch.grid;
  const std::uint64_t blocks = std::uint64_t(grid.x) * grid.y * grid.z;
  const int workers =
      launch.program->has_global_atomics ? 1 : static_cast<int>(std::min<std::uint64_t>(std::max(threads, 1), blocks));
  std::atomic<std::uint64_t> next{0};
  std::vector<Counters> counted(workers);
  std::vector<std::exception_ptr> errors(workers);
  const auto work = [&](int worker) {
    try {
      Block block(launch);
      for (std::uint64_t i; (i = next++) < blocks;) {
        block.run({static_cast<std::uint32_t>(i % grid.x), static_cast<std::uint32_t>(i / grid.x % grid.y),
                   static_cast<std::uint32_t>(i / (std::uint64_t(grid.x) * grid.y))});
      }
      counted[worker] = std::move(block.counters);
    } catch (...) {
      errors[worker] = std::current_exception();
      next = blocks;
    }
  };
  std::vector<std::thread> others;
  for (int worker = 1; worker < workers; ++worker) others.emplace_back(work, worker);
  work(0);
  for (std::thread& other : others) other.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  KernelCounters& kernel = counters_[launch.program->name];
  kernel.kernel = launch.program->name;
  kernel.program = launch.program;
  ++kernel.launches;
  kernel.blocks += blocks;
  kernel.threads = launch.block.x * launch.block.y * launch.block.z;
  kernel.dynamic_shared_bytes = launch.dynamic_shared_bytes;
  for (const Counters& each : counted) kernel.counters += each;
}

}  // namespace ptx
