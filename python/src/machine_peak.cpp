// Times the peak loops of csrc/cpu/peak.cpp on the threads that kernels use. The best of many short slices counts: a
// ceiling is what the machine can do, and whatever else runs meanwhile only lowers a slice.
#include "machine_peak.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bigmodel/parallel.h"
#include "cpu/cpu.h"

namespace bigmodel {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void check(const std::string& op, int threads, double seconds) {
  if (threads < 1 || threads > max_workers()) {
    throw std::invalid_argument("[" + op + "] threads is " + std::to_string(threads) + ", expected 1 to " +
                                std::to_string(max_workers()) + " (torch.set_num_threads sets the most)");
  }
  if (!(seconds > 0)) throw std::invalid_argument("[" + op + "] seconds must be positive");
}

// Arithmetic shares nothing between cores, so each thread keeps its own best slice, and the sum of these is the peak:
// slices short enough to fall between other programs' turns, with no waiting for each other.
//
// work(kernels, sum): a fraction of a millisecond of it; returns the operations done.
using Work = std::int64_t (*)(const cpu::KernelTable& kernels, float* sum);

double best_rate(Work work, int threads, double seconds) {
  struct Run {
    const cpu::KernelTable* kernels;
    Work work;
    double seconds;
    std::vector<double> best;
  } run = {&cpu::kernels(), work, seconds, std::vector<double>(threads)};
  run_workers(
      threads,
      [](void* context, int worker) {
        Run& run = *static_cast<Run*>(context);
        float sum = 0;
        const auto start = Clock::now();
        do {
          const auto slice_start = Clock::now();
          const std::int64_t operations = run.work(*run.kernels, &sum);
          const double rate = static_cast<double>(operations) / seconds_since(slice_start);
          if (rate > run.best[worker]) run.best[worker] = rate;
        } while (seconds_since(start) < run.seconds);
      },
      &run);
  return std::accumulate(run.best.begin(), run.best.end(), 0.0);
}

double fma_peak_flops(int threads, double seconds) {
  check("fma_peak_flops", threads, seconds);
  return best_rate(
      [](const cpu::KernelTable& kernels, float* sum) { return kernels.peak_multiply_add(100'000, 0.9999f, sum); },
      threads, seconds);
}

// The dot products' rates; nothing where the target has no such instruction.
std::optional<double> bf16_dot_peak_flops(int threads, double seconds) {
  check("bf16_dot_peak_flops", threads, seconds);
  float sum = 0;
  if (cpu::kernels().peak_bf16_dot(1, &sum) == 0) return std::nullopt;
  return best_rate([](const cpu::KernelTable& kernels, float* sum) { return kernels.peak_bf16_dot(20'000, sum); },
                   threads, seconds);
}

std::optional<double> int8_dot_peak_ops(int threads, double seconds) {
  check("int8_dot_peak_ops", threads, seconds);
  float sum = 0;
  if (cpu::kernels().peak_int8_dot(1, &sum) == 0) return std::nullopt;
  return best_rate([](const cpu::KernelTable& kernels, float* sum) { return kernels.peak_int8_dot(100'000, sum); },
                   threads, seconds);
}

// Cores share the memory, so what counts is what all threads read together: each reads on and on through its own part
// and adds to one sum, and thread 0 looks at the sum every few milliseconds. The best interval is the bandwidth.
struct BandwidthRun {
  const cpu::KernelTable* kernels;
  double seconds;
  std::int64_t chunk_words;      // small beside an interval, large beside an addition to the sum
  std::int64_t chunks_per_part;  // of one thread
  std::unique_ptr<std::uint64_t[]> words;
  std::atomic<std::int64_t> bytes_read{0};
  double best = 0;

  void read(int worker) {
    constexpr double interval = 0.005;
    std::uint64_t* part = words.get() + worker * chunks_per_part * chunk_words;
    std::fill_n(part, chunks_per_part * chunk_words, std::uint64_t{1});  // pages are then real, and near this core
    const auto start = Clock::now();
    auto interval_start = start;
    std::int64_t read_before = bytes_read.load();
    for (std::int64_t chunk = 0; seconds_since(start) < seconds; chunk = (chunk + 1) % chunks_per_part) {
      kernels->peak_read(part + chunk * chunk_words, chunk_words, chunks_per_part > 1);
      bytes_read += chunk_words * 8;
      if (const double elapsed = seconds_since(interval_start); worker == 0 && elapsed >= interval) {
        const std::int64_t read_now = bytes_read.load();
        best = std::max(best, static_cast<double>(read_now - read_before) / elapsed);
        interval_start = Clock::now();
        read_before = read_now;
      }
    }
  }
};

double read_bandwidth(int threads, std::int64_t bytes, double seconds) {
  check("read_bandwidth", threads, seconds);
  // A part that could lie in a cache is one chunk, so that the clock and the sum cost nothing beside its quick reads.
  constexpr std::int64_t least_words = 1 << 13, most_words = 1 << 17;
  const std::int64_t part_words = bytes / 8 / threads;
  const std::int64_t chunk_words = part_words <= most_words ? part_words : least_words;
  const std::int64_t chunks = part_words / least_words < 1 ? 0 : part_words / chunk_words;
  if (chunks < 1 || seconds < 0.02) {
    throw std::invalid_argument("[read_bandwidth] expected at least " + std::to_string(least_words * 8 * threads) +
                                " bytes and 0.02 seconds");
  }
  BandwidthRun run = {&cpu::kernels(), seconds, chunk_words, chunks, nullptr};
  run.words.reset(new std::uint64_t[static_cast<std::size_t>(chunk_words * chunks * threads)]);
  run_workers(threads, [](void* context, int worker) { static_cast<BandwidthRun*>(context)->read(worker); }, &run);
  return run.best;
}

}  // namespace

void define_machine_peak(pybind11::module_& module) {
  using pybind11::arg;
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  module.def(
      "fma_peak_flops", &fma_peak_flops, arg("threads"), arg("seconds") = 0.2, without_gil,
      "Most fp32 multiply-add FLOP/s that the active CPU target reached with this many threads, from registers.");
  module.def(
      "bf16_dot_peak_flops", &bf16_dot_peak_flops, arg("threads"), arg("seconds") = 0.2, without_gil,
      "Most FLOP/s of bf16 dot products with fp32 sums that the active CPU target reached with this many threads, "
      "from registers; None where it has no such instruction.");
  module.def("int8_dot_peak_ops", &int8_dot_peak_ops, arg("threads"), arg("seconds") = 0.2, without_gil,
             "Most operations/s of int8 dot products with int32 sums (VNNI), likewise.");
  module.def("read_bandwidth", &read_bandwidth, arg("threads"), arg("bytes") = std::int64_t{1} << 28,
             arg("seconds") = 0.5, without_gil,
             "Most bytes/s read from one buffer of this many bytes, split evenly among the threads.");
}

}  // namespace bigmodel
