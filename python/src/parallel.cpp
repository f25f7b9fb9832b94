// The kernels' threads are torch's: one pool, governed by torch.set_num_threads.
#include "bigmodel/parallel.h"

#include <torch/csrc/stable/ops.h>

namespace bigmodel {

int max_workers() { return static_cast<int>(torch::stable::get_num_threads()); }

void run_workers(int workers, void (*body)(void* context, int worker), void* context) {
  if (workers == 1) {
    body(context, 0);
    return;
  }
  torch::stable::parallel_for(0, workers, 1, [body, context](std::int64_t begin, std::int64_t end) {
    for (std::int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
  });
}

}  // namespace bigmodel
