// Dropout by the contract of bigmodel/philox.h: the random words, and the factor that an element is multiplied by.
#pragma once

#include <cstdint>

#include "bigmodel/philox.h"

namespace bigmodel::cuda {

struct PhiloxWords {
  std::uint32_t word[4];
};

__device__ inline PhiloxWords philox4x32_10(PhiloxWords counter, std::uint64_t seed) {
  auto& c = counter.word;
  std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint32_t high0 = __umulhi(0xD2511F53u, c[0]), low0 = 0xD2511F53u * c[0];
    const std::uint32_t high1 = __umulhi(0xCD9E8D57u, c[2]), low1 = 0xCD9E8D57u * c[2];
    c[0] = high1 ^ c[1] ^ key0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ key1;
    c[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// What kernels are told of dropout.
struct DropoutRule {
  const std::int64_t* seed;  // null: no dropout
  std::uint32_t threshold;
  float kept;  // 1 / (1 - p)

  DropoutRule() = default;
  explicit DropoutRule(const Dropout& dropout)
      : seed(dropout.p > 0 ? dropout.device_seed : nullptr),
        threshold(static_cast<std::uint32_t>(dropout.p * 4294967296.0)),
        kept(static_cast<float>(1.0 / (1.0 - dropout.p))) {}
};

// Dropout within one head of one batch.
struct HeadDropout {
  DropoutRule rule;
  std::uint64_t seed;
  std::uint32_t batch;

  __device__ HeadDropout(const DropoutRule& rule, int batch)
      : rule(rule),
        seed(rule.seed ? static_cast<std::uint64_t>(*rule.seed) : 0),
        batch(static_cast<std::uint32_t>(batch)) {}

  // The words of columns 4 quad to 4 quad + 3.
  __device__ PhiloxWords words(int head, int row, int quad) const {
    return philox4x32_10(
        {{static_cast<std::uint32_t>(quad), static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(head), batch}},
        seed);
  }
  __device__ float factor(std::uint32_t word) const { return word >= rule.threshold ? rule.kept : 0.0f; }
  // Multiplies N neighbours of a row, from `column` on: a multiple of four where N is.
  template <int N>
  __device__ void drop(int head, int row, int column, float (&x)[N]) const {
    if constexpr (N % 4 == 0) {
#pragma unroll
      for (int i = 0; i < N; i += 4) {
        const PhiloxWords four = words(head, row, (column + i) / 4);
#pragma unroll
        for (int j = 0; j < 4; ++j) x[i + j] *= factor(four.word[j]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] *= factor(head, row, column + i);
    }
  }
  __device__ float factor(int head, int row, int column) const {
    const PhiloxWords four = words(head, row, column / 4);
    const std::uint32_t low = column % 2 ? four.word[1] : four.word[0], high = column % 2 ? four.word[3] : four.word[2];
    return factor(column % 4 < 2 ? low : high);
  }
};

}  // namespace bigmodel::cuda
