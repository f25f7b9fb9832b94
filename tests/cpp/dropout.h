// Dropout as the tests define it: the contract in bigmodel/philox.h, one element at a time.
#pragma once

#include <cmath>

#include "bigmodel/philox.h"

namespace bigmodel::test {

// What an element is multiplied by.
inline double dropout_factor(const Dropout& dropout, std::uint32_t batch, std::uint32_t head, std::uint32_t row,
                             std::uint32_t column) {
  if (dropout.p == 0.0) return 1.0;
  std::uint32_t word[4] = {column / 4, row, head, batch};
  std::uint32_t key[2] = {std::uint32_t(dropout.seed), std::uint32_t(dropout.seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * word[0], b = std::uint64_t{0xCD9E8D57} * word[2];
    const std::uint32_t next[4] = {std::uint32_t(b >> 32) ^ word[1] ^ key[0], std::uint32_t(b),
                                   std::uint32_t(a >> 32) ^ word[3] ^ key[1], std::uint32_t(a)};
    for (int i = 0; i < 4; ++i) word[i] = next[i];
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return double(word[column % 4]) >= std::floor(dropout.p * 0x1p32) ? 1.0 / (1.0 - dropout.p) : 0.0;
}

}  // namespace bigmodel::test
