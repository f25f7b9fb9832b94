// The buffers that kernels may touch: memory of the host, told to the emulator by address, size and name.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace ptx {

struct Buffer {
  std::uint64_t begin = 0, end = 0;
  std::string name;
  bool read_only = false;
  // One byte per byte where reads before the first write are to be found; else empty.
  std::vector<std::uint8_t> written;

  bool contains(std::uint64_t address, std::uint64_t bytes) const {
    return address >= begin && address + bytes <= end && address + bytes >= address;
  }
  bool initialised(std::uint64_t address, std::uint64_t bytes) const {
    if (written.empty()) return true;
    return std::memchr(written.data() + (address - begin), 0, bytes) == nullptr;
  }
  void wrote(std::uint64_t address, std::uint64_t bytes) {
    if (!written.empty()) std::memset(written.data() + (address - begin), 1, bytes);
  }
};

class GlobalMemory {
 public:
  // A buffer that overlaps others replaces them: their memory was freed meanwhile.
  void add(std::uint64_t begin, std::uint64_t bytes, std::string name, bool initialised, bool read_only) {
    if (bytes == 0) return;
    for (auto each = buffers_.begin(); each != buffers_.end();) {
      const Buffer& old = each->second;
      each = old.begin < begin + bytes && begin < old.end ? buffers_.erase(each) : std::next(each);
    }
    Buffer& buffer = buffers_[begin];
    buffer = {begin, begin + bytes, std::move(name), read_only, {}};
    if (!initialised) buffer.written.assign(bytes, 0);
  }
  void remove(std::uint64_t begin) { buffers_.erase(begin); }
  void clear() { buffers_.clear(); }

  // The buffer that begins at or before an address; it may end before it too.
  Buffer* find(std::uint64_t address) {
    auto next = buffers_.upper_bound(address);
    return next == buffers_.begin() ? nullptr : &std::prev(next)->second;
  }
  Buffer* after(std::uint64_t address) {
    auto next = buffers_.upper_bound(address);
    return next == buffers_.end() ? nullptr : &next->second;
  }

 private:
  std::map<std::uint64_t, Buffer> buffers_;
};

}  // namespace ptx
