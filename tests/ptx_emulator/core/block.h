// One thread block: its warps, shared memory and barriers.
#pragma once

#include <memory>
#include <vector>

#include "counters.h"
#include "global_memory.h"
#include "hazards.h"
#include "shared_memory.h"
#include "warp.h"

namespace ptx {

struct Launch {
  const Program* program = nullptr;
  GlobalMemory* memory = nullptr;
  Hazards* hazards = nullptr;
  Index3 grid, block;
  std::uint32_t dynamic_shared_bytes = 0;
  std::vector<std::byte> parameters;
  std::uint64_t step_limit = 0;  // instructions of one warp between two barriers
};

// Ends a block that cannot go on; the hazard is noted.
struct BlockStopped {};

class Block {
 public:
  explicit Block(const Launch& launch);
  void run(Index3 index);

  // A warp arrives at a barrier; threads == 0 means all of the block.
  void arrive(Warp& warp, int barrier, std::uint32_t threads, bool waits, int pc);
  // bar.red: adds one warp's lanes; the result is delivered when the barrier completes.
  void reduce(int barrier, std::uint32_t lanes, std::uint32_t values);

  std::uint64_t number() const;
  Index3 thread_of(int warp, int lane) const;

  const Launch& launch;
  Index3 index;
  SharedMemory shared;
  Counters counters;
  std::vector<std::byte> local;  // of all threads, one after another
  std::uint32_t threads = 0;

 private:
  struct Barrier {
    std::uint32_t arrived = 0, synced = 0;  // warps
    std::uint32_t threads = 0;              // that are awaited; 0: all
    std::uint32_t lanes_true = 0, lanes_total = 0;
    int pc = -1;
  };
  void complete_if_full(Barrier& barrier);
  void deliver(Barrier& barrier);
  void stuck();

  std::vector<std::unique_ptr<Warp>> warps_;
  Barrier barriers_[16];
};

}  // namespace ptx
