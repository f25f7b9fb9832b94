// The random words of bigmodel/philox.h, one counter per lane, and the factors that dropout multiplies by. Plain loops
// over the lanes: the compiler turns the widening products into vector instructions.
#pragma once

#include <cstdint>

#include "bigmodel/philox.h"
#include "cpu/isa/vec.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// One word of the counter or of the result in every lane.
struct PhiloxWord {
  std::uint32_t lane[lanes];
};

BIGMODEL_INLINE PhiloxWord same_word(std::uint32_t word) {
  PhiloxWord all;
  for (int l = 0; l < lanes; ++l) all.lane[l] = word;
  return all;
}

// Philox4x32-10 in place: counter in, four random words out.
BIGMODEL_INLINE void philox4x32_10(PhiloxWord (&c)[4], std::uint64_t seed) {
  std::uint32_t key0 = std::uint32_t(seed), key1 = std::uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int l = 0; l < lanes; ++l) {
      const std::uint64_t product0 = std::uint64_t(0xD2511F53u) * c[0].lane[l];
      const std::uint64_t product1 = std::uint64_t(0xCD9E8D57u) * c[2].lane[l];
      c[0].lane[l] = std::uint32_t(product1 >> 32) ^ c[1].lane[l] ^ key0;
      c[2].lane[l] = std::uint32_t(product0 >> 32) ^ c[3].lane[l] ^ key1;
      c[1].lane[l] = std::uint32_t(product1);
      c[3].lane[l] = std::uint32_t(product0);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// What an element with this random word is multiplied by: 1 / (1 - p) when kept, else 0.
struct DropoutFactor {
  std::uint32_t threshold;
  float kept;

  explicit DropoutFactor(const Dropout& dropout)
      : threshold(std::uint32_t(dropout.p * 4294967296.0)), kept(float(1.0 / (1.0 - dropout.p))) {}
  F32 operator()(const PhiloxWord& word) const {
    float factors[lanes];
    for (int l = 0; l < lanes; ++l) factors[l] = word.lane[l] >= threshold ? kept : 0.0f;
    return load(factors);
  }
};

// Dropout factors of `columns` columns of one vector of rows (lane l: row rows.lane[l] of head heads.lane[l]), columns
// down the memory: factors[(column - first_column) * stride + l].
static __attribute__((noinline, unused)) void dropout_factors(const Dropout& dropout, std::int64_t batch,
                                                              const PhiloxWord& heads, const PhiloxWord& rows,
                                                              std::int64_t first_column, std::int64_t columns,
                                                              float* factors, std::int64_t stride) {
  const DropoutFactor factor(dropout);
  const PhiloxWord batches = same_word(std::uint32_t(dropout.first_batch + batch));
  const std::int64_t end = first_column + columns;
  for (std::int64_t quad = first_column / 4 * 4; quad < end; quad += 4) {
    PhiloxWord words[4] = {same_word(std::uint32_t(quad / 4)), rows, heads, batches};
    philox4x32_10(words, dropout.seed);
    for (int w = 0; w < 4; ++w) {
      const std::int64_t column = quad + w;
      if (column >= first_column && column < end) store(factors + (column - first_column) * stride, factor(words[w]));
    }
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
