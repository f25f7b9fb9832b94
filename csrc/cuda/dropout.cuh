// Dropout of a warp's accumulators. One counter of Philox serves four neighbouring columns, which lie in several lanes:
// each lane computes a share of the counters, and lanes exchange the words.
#pragma once

#include "cuda/attention_scores.cuh"
#include "cuda/philox.cuh"

namespace bigmodel::cuda {

// body(element, factor) where rows are queries. first_key is a multiple of four. Two lanes side by side share counters:
// the left one computes those of the upper row half, the right one those of the lower.
template <int Keys, class Body>
__device__ void for_each_dropout(const HeadDropout& dropout, const QueryRow (&rows)[2], int first_key,
                                 Accumulators<Keys>& s, Body body) {
  const bool right = lane_id() % 2;
  const int head = right ? rows[1].head : rows[0].head, query = right ? rows[1].query : rows[0].query;
#pragma unroll
  for (int block = 0; block < Keys / 8; ++block) {
    const auto [w] = dropout.words(head, query, (first_key + 8 * block) / 4 + lane_id() % 4 / 2);
    const std::uint32_t own[2] = {right ? w[2] : w[0], right ? w[3] : w[1]};
    const std::uint32_t other[2] = {right ? w[0] : w[2], right ? w[1] : w[3]};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t received = __shfl_xor_sync(whole_warp, other[i], 1);
      body(s.at[block][i], dropout.factor(right ? received : own[i]));
      body(s.at[block][2 + i], dropout.factor(right ? own[i] : received));
    }
  }
}

// The same where rows are keys, sixteen from first_key on, and columns queries. Four lanes whose rows are neighbours
// share counters: each computes those of one of its four elements per block.
template <int Queries, class Body>
__device__ void for_each_dropout_transposed(const HeadDropout& dropout, int head, int first_query, int first_key,
                                            Accumulators<Queries>& s, Body body) {
  const int lane = lane_id(), share = lane / 4 % 4;
  const int quad = (first_key + share / 2 * 8) / 4 + lane / 16;
#pragma unroll
  for (int block = 0; block < Queries / 8; ++block) {
    const int query = first_query + 8 * block + 2 * (lane % 4) + share % 2;
    const auto [w] = dropout.words(head, query, quad);
    const auto pick = [](const std::uint32_t (&of)[4], int which) {
      const std::uint32_t low = which % 2 ? of[1] : of[0], high = which % 2 ? of[3] : of[2];
      return which < 2 ? low : high;
    };
    std::uint32_t received[4];  // [step]: of the lane whose share differs by `step`, for that lane's element
#pragma unroll
    for (int step = 0; step < 4; ++step) received[step] = __shfl_xor_sync(whole_warp, pick(w, share ^ step), 4 * step);
#pragma unroll
    for (int i = 0; i < 4; ++i) body(s.at[block][i], dropout.factor(pick(received, share ^ i)));
  }
}

template <int Keys>
__device__ void drop(const HeadDropout& dropout, const QueryRow (&rows)[2], int first_key, Accumulators<Keys>& s) {
  for_each_dropout(dropout, rows, first_key, s, [](float& x, float factor) { x *= factor; });
}

}  // namespace bigmodel::cuda
