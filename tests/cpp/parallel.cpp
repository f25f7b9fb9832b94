// The host's threads, where there is no torch.
#include "bigmodel/parallel.h"

#include <thread>
#include <vector>

namespace bigmodel {

int max_workers() { return 3; }  // more than the kernels' own idea of two, odd, and enough to find races

void run_workers(int workers, void (*body)(void* context, int worker), void* context) {
  std::vector<std::thread> threads;
  for (int worker = 1; worker < workers; ++worker) threads.emplace_back(body, context, worker);
  body(context, 0);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace bigmodel
