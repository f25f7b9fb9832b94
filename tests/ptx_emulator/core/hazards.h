// What a kernel did wrong, and where.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

namespace ptx {

struct Index3 {
  std::uint32_t x = 0, y = 0, z = 0;
};

struct Hazard {
  std::string kind;  // "out of bounds", "misaligned", "race", ...
  std::string kernel;
  int line = 0;        // of the PTX text
  std::string text;    // that line
  std::string source;  // file:line of the CUDA source, where the PTX names it
  Index3 block, thread;
  std::string message;
  std::int64_t count = 1;
};

// Hazards of one kind at one line are one entry: the first in the order of blocks, with a count.
class Hazards {
 public:
  void add(Hazard hazard, std::uint64_t block_number) {
    const std::lock_guard lock(mutex_);
    const auto key = std::tuple(hazard.kernel, hazard.line, hazard.kind);
    const auto [found, is_new] = entries_.try_emplace(key, Entry{hazard, block_number});
    if (is_new) return;
    const std::int64_t count = found->second.hazard.count + 1;
    if (block_number < found->second.block) found->second = Entry{std::move(hazard), block_number};
    found->second.hazard.count = count;
  }

  std::vector<Hazard> take() {
    const std::lock_guard lock(mutex_);
    std::vector<Hazard> result;
    for (auto& [key, entry] : entries_) result.push_back(std::move(entry.hazard));
    entries_.clear();
    return result;
  }

 private:
  struct Entry {
    Hazard hazard;
    std::uint64_t block;
  };
  std::map<std::tuple<std::string, int, std::string>, Entry> entries_;
  std::mutex mutex_;
};

}  // namespace ptx
