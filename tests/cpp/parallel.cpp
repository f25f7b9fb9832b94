// The host's threads, where there is no torch.
#include "bigmodel/parallel.h"

#include <thread>
#include <vector>

#include "tensors.h"

namespace bigmodel {

int test::most_workers = 0;

int max_workers() { return 3; }  // more than the kernels' own idea of two, odd, and enough to find races

void run_workers(int workers, void (*body)(void* context, int worker), void* context) {
  if (workers > test::most_workers) test::most_workers = workers;
  std::vector<std::thread> threads;
  for (int worker = 1; worker < workers; ++worker) threads.emplace_back(body, context, worker);
  body(context, 0);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace bigmodel
