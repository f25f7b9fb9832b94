// Dynamic scheduling over the host's threads. Every worker has a list of jobs, the same in every call of one shape, so
// that what a job reads and writes is still in the caches of its core; who has done his own helps with the others'.
#pragma once

#include <cstdint>

#include "bigmodel/parallel.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// Floats, a page of them, that separate what one worker writes over and over from what the next one does: a prefetcher
// that ran on past the end would fetch the other's cache lines, and each would wait for his own to come back.
inline constexpr std::int64_t worker_gap = 1024;

// List i of n holds the jobs i, i + n, i + 2n, ... On a cache line of its own.
struct alignas(64) JobList {
  std::int64_t taken;
};

template <class Body>
struct JobLists {
  static constexpr int most = 64;  // more workers share lists
  const Body* body;
  std::int64_t jobs;
  int count;
  JobList lists[most];

  void run(int worker) {
    for (int turn = 0; turn < count; ++turn) {
      const int list = (worker + turn) % count;
      for (;;) {
        const std::int64_t job = list + count * __atomic_fetch_add(&lists[list].taken, 1, __ATOMIC_RELAXED);
        if (job >= jobs) break;
        (*body)(job, worker);
      }
    }
  }
};

// Calls body(job, worker) once for every job in [0, jobs), on at most `workers` threads (worker < workers names the
// thread's scratch memory). Jobs start in about their order, so the longest belong first. With one worker no thread is
// woken.
template <class Body>
static void for_each_job(int workers, std::int64_t jobs, const Body& body) {
  if (workers > jobs) workers = int(jobs);
  if (workers <= 1) {
    for (std::int64_t job = 0; job < jobs; ++job) body(job, 0);
    return;
  }
  using Lists = JobLists<Body>;
  Lists lists;
  lists.body = &body, lists.jobs = jobs, lists.count = workers < Lists::most ? workers : Lists::most;
  for (int list = 0; list < lists.count; ++list) lists.lists[list].taken = 0;
  run_workers(workers, [](void* context, int worker) { static_cast<Lists*>(context)->run(worker); }, &lists);
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
