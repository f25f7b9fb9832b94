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

// Passes that shared memory needs for these accesses of `bytes` (4, 8 or 16) each, 128 bytes at most: in one pass each
// of its 32 banks gives one word, to any number of lanes.
inline int bank_passes(const std::uint64_t* addresses, int count, std::uint32_t bytes) {
  const std::uint32_t units = 128 / bytes;  // banks taken together, as an aligned access takes them
  std::uint64_t first[32];
  std::uint32_t seen = 0;
  bool clash = false;
  for (int i = 0; i < count; ++i) {
    const std::uint64_t row = addresses[i] / bytes;
    const auto unit = static_cast<std::uint32_t>(row % units);
    clash |= (seen >> unit & 1) && first[unit] != row;
    first[unit] = row;
    seen |= 1u << unit;
  }
  if (!clash) return 1;
  int passes = 1;
  std::uint64_t sorted[32];
  for (int i = 0; i < count; ++i) sorted[i] = addresses[i] / bytes;
  std::sort(sorted, sorted + count);
  const auto end = std::unique(sorted, sorted + count);
  int in_unit[32] = {};
  for (auto row = sorted; row != end; ++row) passes = std::max(passes, ++in_unit[*row % units]);
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
