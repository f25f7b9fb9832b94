// One warp: its registers, and which of its lanes run where.
//
// Lanes at the lowest program counter run first; those that wait ahead rejoin when they are reached. A .sync
// instruction whose lanes are not all here is put off until the others came.
#pragma once

#include <bit>
#include <cstring>
#include <vector>

#include "program.h"

namespace ptx {

class Block;
struct Buffer;

class Warp {
 public:
  enum class State : std::uint8_t { ready, at_barrier, done };

  Warp(Block& block, int index);
  void start(std::uint32_t lanes);

  template <class T>
  T* reg(std::uint32_t offset) {
    return reinterpret_cast<T*>(file_.data() + offset);
  }
  std::uint32_t& predicate(std::uint32_t offset) { return *reg<std::uint32_t>(offset); }

  // Runs until a barrier or the end.
  void run();

  void branch(std::uint32_t taken, int target);
  void exit(std::uint32_t lanes);
  // Whether the lanes of `members` are here. Later: this group waits for them, and the instruction will run again.
  enum class Meeting { all_here, later, never };
  Meeting meet(std::uint32_t members);
  void wait_at_barrier() { state = State::at_barrier; }

  // Notes what the current instruction did wrong in one lane.
  void hazard(const char* kind, int lane, const std::string& message);

  Block& block;
  const int index;
  std::uint32_t exec = 0;    // lanes that the current instruction runs in: active ones whose guard holds
  std::uint32_t active = 0;  // lanes at pc
  std::uint32_t alive = 0;   // lanes that have not exited
  int pc = 0;                // of the next instruction
  State state = State::done;
  Buffer* last_buffer = nullptr;

  // cp.async under way. Groups are counted per lane.
  struct Copy {
    std::uint32_t offset;  // into shared memory
    std::uint32_t group;
    std::uint8_t lane, bytes;
    std::byte data[16];
  };
  std::vector<Copy> copies;
  std::uint32_t groups_committed[warp_size] = {};

  // bar.red: where its result goes
  std::uint32_t reduction = 0;
  std::uint8_t reduction_kind = 0;

 private:
  struct Group {
    int pc;
    std::uint32_t lanes;
    bool waits;
  };
  void rejoin();
  void update_rejoin();
  bool take_lowest();

  std::vector<std::byte> file_;
  std::vector<Group> groups_;
  int rejoin_ = 0;  // the lowest pc at which another group has to be looked at
};

// Calls f(lane) for each lane that the current instruction runs in, in order.
template <class F>
inline void for_lanes(std::uint32_t lanes, F f) {
  for (; lanes != 0; lanes &= lanes - 1) f(std::countr_zero(lanes));
}

// d[lane] = f(lane) where the instruction runs. f is computed everywhere, so that the loop is one of vectors.
template <class D, class F>
[[gnu::always_inline]] inline void each_lane(const Warp& warp, D* d, F f) {
  if (warp.exec == all_lanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < warp_size; ++lane) d[lane] = f(lane);
  } else {
    const std::uint32_t exec = warp.exec;
#pragma GCC ivdep
    for (int lane = 0; lane < warp_size; ++lane) d[lane] = (exec >> lane & 1) ? f(lane) : d[lane];
  }
}

// Mask of the lanes where f(lane) is true, wherever the instruction runs; other lanes keep `old`.
template <class F>
[[gnu::always_inline]] inline std::uint32_t mask_of(const Warp& warp, std::uint32_t old, F f) {
  std::uint32_t found[warp_size];
#pragma GCC ivdep
  for (int lane = 0; lane < warp_size; ++lane) found[lane] = f(lane) ? 1u << lane : 0u;
  std::uint32_t mask = 0;
  for (int lane = 0; lane < warp_size; ++lane) mask |= found[lane];
  return (mask & warp.exec) | (old & ~warp.exec);
}

}  // namespace ptx
