// While this is on, every new CPU tensor's memory is a buffer that emulated kernels may touch, from its first byte to
// its last. Fresh memory is filled with ones (as floats NaN), so that what a kernel forgot to write shows. Memory that
// a graph uses is kept while the graph may run again, as torch does for CUDA graphs.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <cstdint>
#include <cstring>
#include <vector>

extern "C" void ptx_emulator_add_buffer(std::uint64_t address, std::uint64_t bytes, const char* name, int initialised,
                                        int read_only);
extern "C" void ptx_emulator_remove_buffer(std::uint64_t address);

namespace {

bool keeping = false;
std::vector<void*> kept;

void release(void* data) {
  if (keeping) return kept.push_back(data);
  ptx_emulator_remove_buffer(reinterpret_cast<std::uint64_t>(data));
  c10::free_cpu(data);
}

class ToldAllocator : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    void* data = c10::alloc_cpu(bytes);
    if (data != nullptr) {
      std::memset(data, 0xff, bytes);
      ptx_emulator_add_buffer(reinterpret_cast<std::uint64_t>(data), bytes, "a tensor", 1, 0);
    }
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

c10::Allocator* before = nullptr;

}  // namespace

extern "C" [[gnu::visibility("default")]] void tensor_memory_on() {
  static ToldAllocator allocator;
  if (before != nullptr) return;
  before = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&allocator, 1);
}

// With keep, tensors' memory outlives them from now on, until this is called without it.
extern "C" [[gnu::visibility("default")]] void tensor_memory_keep(int keep) {
  keeping = keep != 0;
  if (keeping) return;
  for (void* data : kept) release(data);
  kept.clear();
}
