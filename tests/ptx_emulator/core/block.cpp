#include "block.h"

#include <string>

#include "error.h"

namespace ptx {

Block::Block(const Launch& launch) : launch(launch) {
  threads = launch.block.x * launch.block.y * launch.block.z;
  for (std::uint32_t w = 0; w * warp_size < threads; ++w) {
    warps_.push_back(std::make_unique<Warp>(*this, static_cast<int>(w)));
  }
  counters.lines.resize(launch.program->code.size());
  local.resize(static_cast<std::size_t>(threads) * launch.program->local_bytes);
}

std::uint64_t Block::number() const {
  return (static_cast<std::uint64_t>(index.z) * launch.grid.y + index.y) * launch.grid.x + index.x;
}

Index3 Block::thread_of(int warp, int lane) const {
  const std::uint32_t linear = warp * warp_size + lane;
  const Index3& size = launch.block;
  return {linear % size.x, linear / size.x % size.y, linear / (size.x * size.y)};
}

void Block::run(Index3 at) {
  index = at;
  shared.start(launch.program->static_shared_bytes + launch.dynamic_shared_bytes, static_cast<int>(warps_.size()));
  std::fill_n(barriers_, 16, Barrier());
  std::fill(local.begin(), local.end(), std::byte{0xff});
  for (auto& warp : warps_) {
    const std::uint32_t rest = threads - warp->index * warp_size;
    warp->start(rest >= warp_size ? all_lanes : (1u << rest) - 1);
  }
  try {
    for (bool progress = true; progress;) {
      progress = false;
      for (auto& warp : warps_) {
        if (warp->state != Warp::State::ready) continue;
        progress = true;
        warp->run();
        if (warp->state == Warp::State::done) {
          for (Barrier& barrier : barriers_) complete_if_full(barrier);
        }
      }
    }
    stuck();
  } catch (const BlockStopped&) {  // its hazard is noted, other blocks run on
  }
}

void Block::stuck() {
  for (auto& warp : warps_) {
    if (warp->state != Warp::State::at_barrier) continue;
    warp->hazard("barrier", std::countr_zero(warp->alive), "waits at a barrier that the others never reach");
    return;
  }
}

void Block::arrive(Warp& warp, int barrier, std::uint32_t count, bool waits, int pc) {
  Barrier& b = barriers_[barrier];
  const std::uint32_t bit = 1u << warp.index;
  const int lane = std::countr_zero(warp.alive);
  if (b.arrived == 0) {
    b.threads = count;
    b.pc = pc;
  } else if (b.threads != count) {
    warp.hazard("barrier", lane, "another number of threads than other warps name at this barrier");
    throw BlockStopped();
  } else if (count == 0 && b.pc != pc) {
    warp.hazard("divergent barrier", lane, "a barrier of all threads that warps meet at different instructions");
    throw BlockStopped();
  }
  b.arrived |= bit;
  if (waits) {
    b.synced |= bit;
    warp.wait_at_barrier();
  }
  complete_if_full(b);
}

void Block::reduce(int barrier, std::uint32_t lanes, std::uint32_t values) {
  barriers_[barrier].lanes_total += std::popcount(lanes);
  barriers_[barrier].lanes_true += std::popcount(values & lanes);
}

void Block::complete_if_full(Barrier& barrier) {
  if (barrier.arrived == 0) return;
  std::uint32_t living = 0;
  for (auto& warp : warps_) living |= warp->state != Warp::State::done ? 1u << warp->index : 0;
  const bool all = barrier.threads == 0;
  if (all ? (living & ~barrier.arrived) != 0
          : static_cast<std::uint32_t>(std::popcount(barrier.arrived)) * warp_size < barrier.threads) {
    return;
  }
  const bool whole_block = (living & ~barrier.synced) == 0;
  if (whole_block) {
    shared.barrier_of_all();
  } else {
    shared.barrier_of(barrier.arrived, barrier.synced);
  }
  deliver(barrier);
  barrier = Barrier();
}

void Block::deliver(Barrier& barrier) {
  for (auto& warp : warps_) {
    if (!(barrier.synced >> warp->index & 1)) continue;
    warp->state = Warp::State::ready;
    if (warp->reduction == 0) continue;
    const bool any = barrier.lanes_true > 0, every = barrier.lanes_true == barrier.lanes_total;
    if (warp->reduction_kind == 'p') {
      for_lanes(warp->alive, [&](int lane) { warp->reg<std::uint32_t>(warp->reduction)[lane] = barrier.lanes_true; });
    } else {
      const bool value = warp->reduction_kind == 'a' ? every : any;
      warp->predicate(warp->reduction) = value ? all_lanes : 0;
    }
    warp->reduction = 0;
  }
}

}  // namespace ptx
