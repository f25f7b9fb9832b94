// A number that changes when any element of a matrix does (with all but the certainty of 32 bits per lane): how packed
// weights notice writes that nothing announces. Reads the matrix once, by all threads, at the speed of the memory that
// holds it.
#include "cpu/isa/pack.h"
#include "cpu/kernels.h"
#include "cpu/product.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {
namespace {

// One round of XXH32 (Collet, 2012): a bijection of what was before, and of the new words, so that no single change is
// lost. Multiplying carries a change upwards and the rotation brings it down again, so that a second change cannot undo
// it by chance.
BIGMODEL_INLINE I32 mixed(I32 hash, F32 words) {
  constexpr std::int32_t prime_1 = -1640531535, prime_2 = -2048144777;
  const I32 sum = hash + as_int(words) * set1_int(prime_2);
  return (shift_left<13>(sum) | (shift_right<19>(sum) & set1_int(0x1fff))) * set1_int(prime_1);
}

// Four vectors of hashes, as one would wait for the latency of its operations.
struct Hashes {
  I32 chain[4];
  int next = 0;

  void take(F32 words) {
    chain[next] = mixed(chain[next], words);
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
      hashes.chain[c] = mixed(hashes.chain[c], load(reinterpret_cast<const float*>(data + at + c * width)));
    }
  }
  for (; at < bytes; at += width) {
    float words[lanes] = {};
    __builtin_memcpy(words, data + at, bytes - at < width ? bytes - at : width);
    hashes.take(load(words));
  }
  hashes.next = 0;
}

std::uint64_t joined(std::uint64_t sum, std::uint64_t next) { return (sum ^ next) * 0x100000001b3u; }

// Of rows [first, last), which lie along the dimension of unit stride, if there is one.
std::uint64_t fingerprint_of_rows(Matrix<const char> rows, std::int64_t element, std::int64_t first,
                                  std::int64_t last) {
  Hashes hashes{{set1_int(1), set1_int(2), set1_int(3), set1_int(4)}};
  for (std::int64_t i = first; i < last; ++i) {
    if (rows.column_stride == element) {
      take_run(hashes, at(rows, i, 0), rows.columns * element);
    } else {
      for (std::int64_t j = 0; j < rows.columns; ++j) take_run(hashes, at(rows, i, j), element);
    }
  }
  std::uint64_t result = 0;
  for (const I32& chain : hashes.chain) {
    std::uint32_t words[lanes];
    __builtin_memcpy(words, &chain.v, sizeof words);
    for (std::uint32_t word : words) result = joined(result, word);
  }
  return result;
}

}  // namespace

std::uint64_t fingerprint(const TensorView& matrix) {
  const std::int64_t element = bytes_of(matrix.dtype), bytes = matrix.size[0] * matrix.size[1] * element;
  Matrix<const char> rows{static_cast<const char*>(matrix.data), matrix.size[0], matrix.size[1],
                          matrix.stride[0] * element, matrix.stride[1] * element};
  if (matrix.stride[1] != 1 && matrix.stride[0] == 1) rows = transposed(rows);
  // The parts depend on the matrix alone: the same on any number of threads.
  constexpr std::int64_t most_parts = 64, bytes_of_part = 1 << 16, worth_waking = 1 << 20;
  const std::int64_t wanted = least(most_parts, 1 + bytes / bytes_of_part);
  const std::int64_t rows_of_part = parts_of(rows.rows, wanted);
  std::uint64_t part[most_parts];
  const std::int64_t parts = parts_of(rows.rows, rows_of_part);
  for_each_job(workers_for(bytes, worth_waking), parts, [&](std::int64_t job, int) {
    part[job] = fingerprint_of_rows(rows, element, job * rows_of_part, least(rows.rows, (job + 1) * rows_of_part));
  });
  std::uint64_t result = 0;
  for (std::int64_t p = 0; p < parts; ++p) result = joined(result, part[p]);
  return result;
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
