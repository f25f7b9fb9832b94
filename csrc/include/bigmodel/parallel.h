// The host supplies threads: declared here, defined by whoever links the kernels (python/src/parallel.cpp with torch's
// pool, tests/cpp with std::thread).
#pragma once

#include <cstdint>

namespace bigmodel {

// Threads that run_workers may use; at least 1. Workspaces are sized by it.
int max_workers();

// Calls body(context, worker) once for every worker in [0, workers), concurrently when the host has threads to spare,
// and returns when all are done. Bodies must not throw. workers <= max_workers(). A body must make progress without
// the other workers: inside another parallel region the host runs them one after the other.
void run_workers(int workers, void (*body)(void* context, int worker), void* context);

}  // namespace bigmodel
