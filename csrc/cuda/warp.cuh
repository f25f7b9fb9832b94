// Reductions over the lanes of a warp and the warps of a block. Every participant gets the result, and always the same
// one: the order of additions is fixed.
#pragma once

#include <cstdint>

namespace bigmodel::cuda {

inline constexpr int warp_size = 32;
inline constexpr std::uint32_t whole_warp = 0xffffffffu;

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % warp_size; }
__device__ inline int warp_id() { return static_cast<int>(threadIdx.x) / warp_size; }

// x, which all lanes of the warp agree on, so that the compiler knows it too: it can then keep what follows from x in
// registers that the lanes share. By a vote on each bit.
__device__ inline int agreed(int x) {
  return static_cast<int>(__ballot_sync(whole_warp, static_cast<unsigned>(x) >> lane_id() & 1));
}

// Over groups of Lanes neighbouring lanes, a power of two.
template <int Lanes = warp_size>
__device__ inline float group_sum(float x) {
#pragma unroll
  for (int step = Lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(whole_warp, x, step);
  return x;
}

template <int Lanes = warp_size>
__device__ inline float group_max(float x) {
#pragma unroll
  for (int step = Lanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(whole_warp, x, step));
  return x;
}

// Over Threads threads: a warp, or a whole block of several, whose shared memory `room` then holds one float per warp.
// All threads of a block take part.
template <int Threads>
__device__ inline float team_sum(float x, float* room) {
  x = group_sum(x);
  if constexpr (Threads == warp_size) return x;
  constexpr int warps = Threads / warp_size;
  __syncthreads();  // room may still be read from the sum before
  if (lane_id() == 0) room[warp_id()] = x;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < warps; ++warp) sum += room[warp];
  return sum;
}

}  // namespace bigmodel::cuda
