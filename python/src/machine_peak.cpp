// Times the peak loops of csrc/cpu/peak.cpp on the threads that kernels use. The best of many short slices counts: a
// ceiling is what the machine can do, and whatever else ran meanwhile only lowers a slice.
#include "machine_peak.h"

#include <chrono>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

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

double fma_peak_flops(int threads, double seconds) {
  check("fma_peak_flops", threads, seconds);
  const cpu::KernelTable& kernels = cpu::kernels();
  constexpr std::int64_t rounds = 1'000'000;  // some milliseconds: waking the threads costs microseconds
  struct Slice {
    const cpu::KernelTable* kernels;
    std::int64_t flops_per_worker;
  } slice = {&kernels, 0};
  double best = 0;
  const auto start = Clock::now();
  while (seconds_since(start) < seconds) {
    const auto slice_start = Clock::now();
    run_workers(
        threads,
        [](void* context, int worker) {
          Slice& slice = *static_cast<Slice*>(context);
          float sum = 0;
          const std::int64_t flops = slice.kernels->peak_multiply_add(rounds, 0.9999f, &sum);
          if (worker == 0) slice.flops_per_worker = flops;
        },
        &slice);
    const double rate = static_cast<double>(slice.flops_per_worker) * threads / seconds_since(slice_start);
    if (rate > best) best = rate;
  }
  return best;
}

double read_bandwidth(int threads, std::int64_t bytes, double seconds) {
  check("read_bandwidth", threads, seconds);
  const std::int64_t words_per_worker = bytes / 8 / threads;
  if (words_per_worker < 1) throw std::invalid_argument("[read_bandwidth] bytes must be at least 8 per thread");
  struct Buffer {
    const cpu::KernelTable* kernels;
    std::unique_ptr<std::uint64_t[]> words;
    std::int64_t words_per_worker;
    std::uint64_t* part(int worker) const { return words.get() + worker * words_per_worker; }
  } buffer = {&cpu::kernels(), nullptr, words_per_worker};
  buffer.words.reset(new std::uint64_t[static_cast<std::size_t>(words_per_worker * threads)]);
  // Each worker writes its part first: pages are then real, and near the core that reads them.
  run_workers(
      threads,
      [](void* context, int worker) {
        Buffer& buffer = *static_cast<Buffer*>(context);
        std::uint64_t* part = buffer.part(worker);
        for (std::int64_t word = 0; word < buffer.words_per_worker; ++word)
          part[word] = static_cast<std::uint64_t>(word);
      },
      &buffer);
  double best = 0;
  const auto start = Clock::now();
  while (seconds_since(start) < seconds) {
    const auto slice_start = Clock::now();
    run_workers(
        threads,
        [](void* context, int worker) {
          Buffer& buffer = *static_cast<Buffer*>(context);
          buffer.kernels->peak_read(buffer.part(worker), buffer.words_per_worker);
        },
        &buffer);
    const double rate = static_cast<double>(words_per_worker) * 8 * threads / seconds_since(slice_start);
    if (rate > best) best = rate;
  }
  return best;
}

}  // namespace

void define_machine_peak(pybind11::module_& module) {
  using pybind11::arg;
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  module.def(
      "fma_peak_flops", &fma_peak_flops, arg("threads"), arg("seconds") = 0.2, without_gil,
      "Most fp32 multiply-add FLOP/s that the active CPU target reached with this many threads, from registers.");
  module.def("read_bandwidth", &read_bandwidth, arg("threads"), arg("bytes") = std::int64_t{1} << 28,
             arg("seconds") = 0.5, without_gil,
             "Most bytes/s read from one buffer of this many bytes, split evenly among the threads.");
}

}  // namespace bigmodel
