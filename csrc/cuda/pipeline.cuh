// Tiles on their way from global memory: a ring of slots in shared memory that cp.async fills ahead of their use.
#pragma once

#include "cuda/ptx.cuh"

namespace bigmodel::cuda {

// Items 0, 1, 2, ... pass through `stages` slots, 2 or 3. step(fetch) waits until the next item has arrived and the
// slot of the one before it is free, starts fetching the item that comes stages - 1 later, and returns the arrived
// item's slot. fetch(item, slot) starts the copies of an item, or does nothing past the last one.
class Pipeline {
 public:
  // Together with the first item arrives what was copied before.
  template <class Fetch>
  __device__ Pipeline(int stages, Fetch fetch) : stages_(stages) {
    for (; fetched_ < stages - 1; ++fetched_) {
      fetch(fetched_, fetched_);
      ptx::commit_copies();
    }
    slot_to_fill_ = stages - 1;
  }

  template <class Fetch>
  __device__ int step(Fetch fetch) {
    wait();
    fetch(fetched_++, slot_to_fill_);
    ptx::commit_copies();
    const int slot = slot_;
    slot_ = next(slot_);
    slot_to_fill_ = next(slot_to_fill_);
    return slot;
  }

  __device__ void wait() const {
    if (stages_ == 2) {
      ptx::wait_for_copies<0>();
    } else {
      ptx::wait_for_copies<1>();
    }
    __syncthreads();
  }

 private:
  __device__ int next(int slot) const { return slot + 1 == stages_ ? 0 : slot + 1; }

  int stages_, fetched_ = 0, slot_ = 0, slot_to_fill_;
};

}  // namespace bigmodel::cuda
