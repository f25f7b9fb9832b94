// A number that changes when any element of a matrix does (with all but the certainty of 32 bits per lane): how packed
// weights notice writes that nothing announces. Reads the matrix once, at the speed of the memory that holds it.
#include "cpu/isa/pack.h"
#include "cpu/kernels.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {
namespace {

// Four vectors of hashes, as one would wait for the latency of its three operations. Each step is a bijection of what
// was before, and of the new words, so that no single change is lost; 33 is odd.
struct Hashes {
  I32 chain[4];
  int next = 0;

  void take(F32 words) {
    I32& hash = chain[next];
    hash = hash + shift_left<5>(hash) + as_int(words);
    next = (next + 1) % 4;
  }
};

// A run of bytes, its last vector filled up with zeros.
void take_run(Hashes& hashes, const char* data, std::int64_t bytes) {
  constexpr std::int64_t width = lanes * std::int64_t{sizeof(float)};
  std::int64_t at = 0;
  for (; hashes.next == 0 && at + 4 * width <= bytes; at += 4 * width) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      hashes.chain[c] = hashes.chain[c] + shift_left<5>(hashes.chain[c]) +
                        as_int(load(reinterpret_cast<const float*>(data + at + c * width)));
    }
  }
  for (; at < bytes; at += width) {
    float words[lanes] = {};
    __builtin_memcpy(words, data + at, bytes - at < width ? bytes - at : width);
    hashes.take(load(words));
  }
  hashes.next = 0;
}

}  // namespace

std::uint64_t fingerprint(const TensorView& matrix) {
  Hashes hashes{{set1_int(1), set1_int(2), set1_int(3), set1_int(4)}};
  const std::int64_t element = matrix.dtype == DType::float32 ? 4 : 2;
  // Along the dimension of unit stride, if there is one.
  const int inner = matrix.stride[1] != 1 && matrix.stride[0] == 1 ? 0 : 1, outer = 1 - inner;
  const bool dense = matrix.stride[inner] == 1;
  const char* data = static_cast<const char*>(matrix.data);
  for (std::int64_t i = 0; i < matrix.size[outer]; ++i) {
    const char* row = data + i * matrix.stride[outer] * element;
    if (dense) {
      take_run(hashes, row, matrix.size[inner] * element);
    } else {
      for (std::int64_t j = 0; j < matrix.size[inner]; ++j) {
        take_run(hashes, row + j * matrix.stride[inner] * element, element);
      }
    }
  }
  std::uint64_t result = 0;
  for (const I32& chain : hashes.chain) {
    std::uint32_t words[lanes];
    __builtin_memcpy(words, &chain.v, sizeof words);
    for (std::uint32_t word : words) result = (result ^ word) * 0x100000001b3u;
  }
  return result;
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
