// Dynamic scheduling over the host's threads: each worker takes the next job until none is left.
#pragma once

#include <cstdint>

#include "bigmodel/parallel.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

template <class Body>
struct JobQueue {
  const Body* body;
  std::int64_t jobs;
  std::int64_t next;
};

// Calls body(job, worker) once for every job in [0, jobs), on at most `workers` threads (worker < workers names the
// thread's scratch memory). Jobs start in order, so the longest belong first. With one worker no thread is woken.
template <class Body>
static void for_each_job(int workers, std::int64_t jobs, const Body& body) {
  if (workers > jobs) workers = int(jobs);
  if (workers <= 1) {
    for (std::int64_t job = 0; job < jobs; ++job) body(job, 0);
    return;
  }
  JobQueue<Body> queue{&body, jobs, 0};
  run_workers(
      workers,
      [](void* context, int worker) {
        JobQueue<Body>& queue = *static_cast<JobQueue<Body>*>(context);
        for (;;) {
          const std::int64_t job = __atomic_fetch_add(&queue.next, 1, __ATOMIC_RELAXED);
          if (job >= queue.jobs) return;
          (*queue.body)(job, worker);
        }
      },
      &queue);
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
