// What both directions of add_norm divide alike. A team of threads (a warp for narrow rows, a block for wide ones)
// takes a row in chunks of N elements, and each thread keeps `norm_chunks` of them in registers. What lies beyond is
// read again.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/element.cuh"
#include "cuda/warp.cuh"

namespace bigmodel::cuda {

inline constexpr int norm_threads = 256;  // of a block
inline constexpr int norm_chunks = 4;

template <int Threads, int N>
struct Team {
  static constexpr int per_block = norm_threads / Threads;
  static constexpr int kept_columns = Threads * norm_chunks * N;

  __device__ static int index() { return static_cast<int>(threadIdx.x) / Threads; }
  __device__ static int thread() { return static_cast<int>(threadIdx.x) % Threads; }

  // body(chunk number, first column) for the chunks of this thread that it keeps.
  template <class Body>
  __device__ static void for_each_kept(int width, Body body) {
#pragma unroll
    for (int chunk = 0; chunk < norm_chunks; ++chunk) {
      const int column = (chunk * Threads + thread()) * N;
      if (column < width) body(chunk, column);
    }
  }

  template <class Body>
  __device__ static void for_each_beyond(int width, Body body) {
    for (int column = kept_columns + thread() * N; column < width; column += Threads * N) body(column);
  }
};

// Calls body with the team for rows of this width.
template <class T, class Body>
void with_team(std::int64_t width, bool packed, Body body) {
  const auto sized = [&]<int n>(std::integral_constant<int, n>) {
    if (width <= Team<warp_size, n>::kept_columns) {
      body(Team<warp_size, n>{});
    } else {
      body(Team<norm_threads, n>{});
    }
  };
  if (packed) {
    sized(std::integral_constant<int, Pack<T>::size>{});
  } else {
    sized(std::integral_constant<int, 1>{});
  }
}

}  // namespace bigmodel::cuda
