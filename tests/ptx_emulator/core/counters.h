// What is counted while a kernel runs, by instruction of its text. Sums by class are made of these at the end.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace ptx {

struct Counters {
  struct Line {
    std::uint64_t issued = 0;      // times a warp ran it
    std::uint64_t lanes = 0;       // lanes in which it ran
    std::uint64_t wavefronts = 0;  // passes over the banks of shared memory
    std::uint64_t ideal = 0;       // passes without bank conflicts
    std::uint64_t sectors = 0;     // 32-byte sectors of global memory
    std::uint64_t bytes = 0;       // asked of global memory

    void operator+=(const Line& other) {
      issued += other.issued, lanes += other.lanes, wavefronts += other.wavefronts, ideal += other.ideal;
      sectors += other.sectors, bytes += other.bytes;
    }
  };
  std::vector<Line> lines;

  void operator+=(const Counters& other) {
    lines.resize(std::max(lines.size(), other.lines.size()));
    for (std::size_t i = 0; i < other.lines.size(); ++i) lines[i] += other.lines[i];
  }
};

// Passes that shared memory needs for the words at these addresses: each of its 32 banks gives one word per pass, to
// any number of lanes. All addresses are of one pass's worth of bytes at most (128).
inline int bank_passes(const std::uint32_t* words, int count) {
  std::uint32_t seen = 0;
  bool clash = false;
  for (int i = 0; i < count; ++i) {
    const std::uint32_t bit = 1u << (words[i] % 32);
    clash |= (seen & bit) != 0;
    seen |= bit;
  }
  if (!clash) return 1;
  int passes = 1;
  std::uint32_t sorted[32];
  std::copy_n(words, count, sorted);
  std::sort(sorted, sorted + count);
  const auto end = std::unique(sorted, sorted + count);
  int in_bank[32] = {};
  for (auto word = sorted; word != end; ++word) passes = std::max(passes, ++in_bank[*word % 32]);
  return passes;
}

// Distinct 32-byte sectors that `count` accesses of some bytes touch.
inline int sectors_of(const std::uint64_t* addresses, int count, std::uint32_t bytes) {
  std::uint64_t sectors[64];
  int found = 0;
  bool ascending = true;
  for (int i = 0; i < count; ++i) {
    for (std::uint64_t sector = addresses[i] / 32; sector <= (addresses[i] + bytes - 1) / 32; ++sector) {
      if (found > 0 && sectors[found - 1] == sector) continue;
      ascending &= found == 0 || sectors[found - 1] < sector;
      if (found < 64) sectors[found++] = sector;
    }
  }
  if (ascending) return found;
  std::sort(sectors, sectors + found);
  return static_cast<int>(std::unique(sectors, sectors + found) - sectors);
}

}  // namespace ptx
