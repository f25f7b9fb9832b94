// What this processor can do at most: the loops behind the measured ceilings that a benchmark divides by.
//
// Compiled per CPU target like every kernel, so that the vector width and the fused multiply-add are the target's own.
#include "cpu/isa/dot_peak.h"
#include "cpu/kernels.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

// Independent chains: more than latency times pipes (4 x 2 on x86, 4 x 4 on wide Arm cores), few enough that they and
// the two constants stay in registers.
#if defined(__aarch64__) || defined(__AVX512F__)
constexpr int chains = 24;
#else
constexpr int chains = 12;
#endif

typedef float FloatVector __attribute__((vector_size(vector_bytes)));
typedef std::uint64_t WordVector __attribute__((vector_size(vector_bytes), aligned(sizeof(std::uint64_t)), may_alias));

constexpr int floats = vector_bytes / static_cast<int>(sizeof(float));
constexpr int words = vector_bytes / static_cast<int>(sizeof(std::uint64_t));

}  // namespace

std::int64_t peak_multiply_add(std::int64_t rounds, float factor, float* sink) {
  FloatVector sum[chains];
  for (int chain = 0; chain < chains; ++chain) sum[chain] = FloatVector{} + static_cast<float>(chain);
  // sum -> factor * sum + (1 - factor) tends to 1: no overflow and no denormals, however many rounds.
  const FloatVector multiplier = FloatVector{} + factor;
  const FloatVector addend = 1.0f - multiplier;
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (int chain = 0; chain < chains; ++chain) sum[chain] = sum[chain] * multiplier + addend;
  }
  for (int chain = 1; chain < chains; ++chain) sum[0] += sum[chain];
  for (int lane = 0; lane < floats; ++lane) *sink += sum[0][lane];
  return rounds * chains * floats * 2;
}

std::int64_t peak_bf16_dot(std::int64_t rounds, float* sink) { return bf16_dot_rounds(rounds, sink); }

std::int64_t peak_int8_dot(std::int64_t rounds, float* sink) { return int8_dot_rounds(rounds, sink); }

namespace {

// Memory answers more requests at once where the second-level cache makes them: Zen 4 reads 16 GB/s that way and 13
// without, one thread.
constexpr std::int64_t words_ahead = vector_bytes == 64 ? 512 : 0;

template <std::int64_t ahead>
std::uint64_t read(const std::uint64_t* data, std::int64_t count) {
  constexpr int streams = 8;
  WordVector sum[streams] = {};
  std::int64_t at = 0;
  for (; at + streams * words <= count; at += streams * words) {
#pragma GCC unroll 8
    for (int stream = 0; stream < streams; ++stream) {
      if constexpr (ahead > 0) __builtin_prefetch(data + at + ahead + stream * words, 0, 2);
      sum[stream] += *reinterpret_cast<const WordVector*>(data + at + stream * words);
    }
  }
  std::uint64_t total = 0;
  for (; at < count; ++at) total += data[at];
  for (int stream = 0; stream < streams; ++stream) {
    for (int lane = 0; lane < words; ++lane) total += sum[stream][lane];
  }
  return total;
}

}  // namespace

std::uint64_t peak_read(const std::uint64_t* data, std::int64_t count, bool far) {
  return far ? read<words_ahead>(data, count) : read<0>(data, count);
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
