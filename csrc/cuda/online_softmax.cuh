// The softmax over keys that pass by in tiles (Milakov and Gimelshein, 2018), for the sixteen rows of a warp's
// accumulators; a thread holds the state of its two rows, shared with the three lanes beside it.
#pragma once

#include <cmath>

#include "cuda/ptx.cuh"
#include "cuda/tile.cuh"

namespace bigmodel::cuda {

// Scores times `unit` are in units of log2. Plain: scores are finite or -inf products, which `unit` also scales.
template <bool Plain>
struct OnlineSoftmax {
  float unit;
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};  // of this thread's columns alone, until finish()

  // Scores to exp(score - maximum); rescales what was summed under an older maximum. The maximum is renewed only when
  // it has grown by more than a factor of 2^8: until then the exponentials stay within fp16's range.
  template <int Keys, int Width>
  __device__ void update(Accumulators<Keys>& s, Accumulators<Width>& output) {
    constexpr float tolerated = 8.0f;
    float largest[2] = {maximum[0], maximum[1]};
    s.for_each([&](float& x, int half, int) { largest[half] = fmaxf(largest[half], x); });
    bool grown = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      largest[half] = group_max<4>(largest[half]);
      grown |= (largest[half] - maximum[half]) * unit > tolerated;
    }
    if (__any_sync(whole_warp, grown)) {
      float factor[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        factor[half] = ptx::exp2((maximum[half] - shift(largest[half])) * unit);
        maximum[half] = largest[half];
        sum[half] *= factor[half];
      }
      output.for_each([&](float& x, int half, int) { x *= factor[half]; });
    }
    const float shifts[2] = {shift(maximum[0]), shift(maximum[1])};
    const float scaled[2] = {-shifts[0] * unit, -shifts[1] * unit};
    s.for_each([&](float& x, int half, int) {
      x = Plain ? ptx::exp2(fmaf(x, unit, scaled[half])) : ptx::exp2((x - shifts[half]) * unit);
      sum[half] += x;
    });
  }

  __device__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) sum[half] = group_sum<4>(sum[half]);
  }

  // What is subtracted: 0 while no key was seen, so that -inf - -inf does not happen.
  __device__ static float shift(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }
};

// The end of a row: its sum under a maximum in natural units, and perhaps a sink, to the log-sum-exp and to the factor
// that makes the output of what was summed.
struct RowEnd {
  float lse, factor;

  __device__ RowEnd(float maximum, float sum, float sink) {
    const float largest = fmaxf(maximum, sink);
    if (largest == -INFINITY) {
      lse = isnan(sum) ? sum : -INFINITY;  // of a query whose own key has no place in a cache
      factor = 0.0f;
      return;
    }
    const float kept = maximum == -INFINITY ? 0.0f : expf(maximum - largest);
    const float total = sum * kept + (sink == -INFINITY ? 0.0f : expf(sink - largest));
    lse = largest + logf(total);
    factor = kept / total;
  }
};

}  // namespace bigmodel::cuda
