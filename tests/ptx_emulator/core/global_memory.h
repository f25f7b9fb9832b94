// The buffers that kernels may touch: memory of the host, told to the emulator by address, size and name.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ptx {

// Who touches a word of four bytes: the launch, the block, and which of the bytes.
class Toucher {
 public:
  Toucher() = default;
  Toucher(std::uint64_t launch, std::uint64_t block) : bits_(launch << 40 | (block & several) << 4) {}

  bool same_launch(const Toucher& other) const { return bits_ >> 40 == other.bits_ >> 40; }
  bool same_block(const Toucher& other) const { return bits_ >> 4 == other.bits_ >> 4; }
  bool shares(const Toucher& other, std::uint32_t bytes) const {
    return same_launch(other) && !same_block(other) && (other.bits_ & bytes) != 0;
  }
  Toucher of(std::uint32_t bytes) const { return Toucher(bits_ | bytes); }
  Toucher by_several() const { return Toucher(bits_ | several << 4); }
  std::uint64_t bits() const { return bits_; }
  explicit Toucher(std::uint64_t bits) : bits_(bits) {}

 private:
  static constexpr std::uint64_t several = (std::uint64_t(1) << 36) - 1;
  std::uint64_t bits_ = 0;
};

struct Buffer {
  std::uint64_t begin = 0, end = 0;
  std::string name;
  bool read_only = false;
  // One byte per byte where reads before the first write are to be found; else empty.
  std::vector<std::uint8_t> written;
  // Who last wrote and read each word. Zeros that the system gives when they are first looked at.
  struct Free {
    void operator()(std::uint64_t* p) const { std::free(p); }
  };
  std::unique_ptr<std::uint64_t[], Free> writers, readers;

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
  // True if another block of the same launch has written there, or has read what is written now.
  bool touch(std::uint64_t address, std::uint32_t bytes, const Toucher& who, bool writes) {
    bool clash = false;
    for (std::uint64_t at = address - begin, last = at + bytes; at < last; at = (at / 4 + 1) * 4) {
      const std::uint64_t stop = std::min(last, (at / 4 + 1) * 4);
      const auto mask = static_cast<std::uint32_t>(((1u << (stop - at)) - 1) << (at % 4));
      clash |= touch_word(at / 4, mask, who, writes);
    }
    return clash;
  }

 private:
  static Toucher load(const std::uint64_t& word) { return Toucher(__atomic_load_n(&word, __ATOMIC_RELAXED)); }
  static void store(std::uint64_t& word, const Toucher& now) { __atomic_store_n(&word, now.bits(), __ATOMIC_RELAXED); }

  bool touch_word(std::uint64_t word, std::uint32_t mask, const Toucher& who, bool writes) {
    const Toucher writer = load(writers[word]), reader = load(readers[word]);
    const bool clash = who.shares(writer, mask) || (writes && who.shares(reader, mask));
    std::uint64_t& noted = writes ? writers[word] : readers[word];
    const Toucher before = writes ? writer : reader;
    Toucher now = who.of(mask);
    if (who.same_block(before))
      now = before.of(mask);
    else if (!writes && who.same_launch(before))
      now = before.by_several().of(mask);
    if (now.bits() != before.bits()) store(noted, now);
    return clash;
  }
};

class GlobalMemory {
 public:
  // A buffer that overlaps others replaces them: their memory was freed meanwhile.
  void add(std::uint64_t begin, std::uint64_t bytes, std::string name, bool initialised, bool read_only) {
    if (bytes == 0) return;
    auto each = buffers_.upper_bound(begin);
    if (each != buffers_.begin()) --each;
    while (each != buffers_.end() && each->second.begin < begin + bytes) {
      each = begin < each->second.end ? buffers_.erase(each) : std::next(each);
    }
    Buffer& buffer = buffers_[begin];
    buffer.begin = begin;
    buffer.end = begin + bytes;
    buffer.name = std::move(name);
    buffer.read_only = read_only;
    if (!initialised) buffer.written.assign(bytes, 0);
    for (auto* noted : {&buffer.writers, &buffer.readers}) {
      noted->reset(static_cast<std::uint64_t*>(std::calloc(bytes / 4 + 1, sizeof(std::uint64_t))));
    }
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
