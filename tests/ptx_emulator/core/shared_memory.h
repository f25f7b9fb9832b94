// One block's shared memory, and for each byte what has happened to it since the last barrier of the whole block.
//
// A barrier of the whole block orders everything before it: it forgets accesses. A barrier of some warps is kept as a
// vector clock (Flanagan and Freund, "FastTrack", 2009), with one simplification: of several unordered readers of a
// byte only the fact is kept, and after a partial barrier a write over such a byte is not judged.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ptx {

enum class Fault : std::uint8_t {
  none,
  unwritten,
  copy_pending,
  read_after_write,
  write_after_read,
  write_after_write,
  overwrites_copy
};

class SharedMemory {
 public:
  static constexpr int max_warps = 32;

  void start(std::uint32_t bytes, int warps);
  std::uint32_t bytes() const { return bytes_; }
  std::byte* data(std::uint32_t offset) { return memory_.data() + offset; }

  // Called before the access itself. other_warp() tells whom a race is with.
  Fault on_read(int warp, std::uint32_t offset, std::uint32_t bytes);
  // data: what will be written. Two warps may write the same bytes: compilers do so with copies of a value.
  Fault on_write(int warp, std::uint32_t offset, std::uint32_t bytes, const std::byte* data);
  Fault on_atomic(int warp, std::uint32_t offset, std::uint32_t bytes);
  // A cp.async was issued, or is waited for: the data is there, for the warp that waited.
  Fault on_copy(int warp, std::uint32_t offset, std::uint32_t bytes);
  void on_copy_done(int warp, std::uint32_t offset, std::uint32_t bytes);
  int other_warp() const { return other_; }

  void barrier_of_all();
  // Those that sync wait for all that arrived; those that only arrive do not.
  void barrier_of(std::uint32_t arrived, std::uint32_t synced);

 private:
  enum State : std::uint8_t { never, valid, pending };
  // Who did it: 0 nobody, warp + 1, by_atomic | warp + 1, or several.
  static constexpr std::uint8_t several = 0x7f, by_atomic = 0x80, owner = 0x7f;
  static constexpr std::uint32_t page = 1024;

  bool ordered(int warp, std::uint8_t who, std::uint16_t clock) const;
  void note_other(std::uint8_t who) { other_ = (who & owner) == several ? -1 : (who & owner) - 1; }
  bool read_word(std::uint32_t self, std::uint32_t at);
  Fault judge_read(int warp, std::uint32_t at);
  Fault judge_write(int warp, std::uint32_t at, std::uint8_t as, bool same);
  Fault write_as(int warp, std::uint32_t offset, std::uint32_t bytes, std::uint8_t as, const std::byte* data);
  void touch(std::uint32_t offset, std::uint32_t bytes);

  std::uint32_t bytes_ = 0;
  int warps_ = 0;
  std::vector<std::byte> memory_;
  std::vector<std::uint8_t> state_, writer_, reader_, dirty_;
  std::vector<std::uint16_t> write_clock_, read_clock_;  // all 1 before the first partial barrier
  std::uint16_t clock_[max_warps][max_warps] = {};
  bool partial_ = false;
  int other_ = -1;
};

}  // namespace ptx
