// Runs an op's kernel where its tensors are: on the CPU with the table in use, or on a CUDA device's current stream.
#pragma once

#include <cstdint>

#include "call.h"
#include "cpu/kernel_table.h"
#if defined(BIGMODEL_CUDA)
#include "cuda/cuda.h"
#include "cuda_place.h"
#endif
#include "workspace.h"

namespace bigmodel::binding {

#if defined(BIGMODEL_CUDA)
template <class Args>
void run_on_cuda(const Call& call, Args& args) {
  if constexpr (requires(const cuda::Place& place) { cuda::run(args, place); }) {
    const CudaPlace here(call);
    OptionalTensor workspace;
    [[maybe_unused]] const std::int64_t bytes = cuda::workspace_bytes(args, here.place());
    if constexpr (requires { args.workspace; }) {
      if (bytes > 0) workspace = call.bytes(bytes);
      args.workspace = bytes > 0 ? workspace->mutable_data_ptr() : nullptr;
    }
    try {
      cuda::run(args, here.place());
    } catch (const cuda::Error& error) {
      call.fail(error.what());
    }
  } else {
    call.fail("has no CUDA kernel");
  }
}
#endif

// With the workspace that the kernel asks for.
template <class Args>
void run(const Call& call, const cpu::Kernel<Args>& on_cpu, Args& args) {
#if defined(BIGMODEL_CUDA)
  if (call.on_cuda()) return run_on_cuda(call, args);
#endif
  if constexpr (requires { args.workspace; }) {
    Workspace workspace(call, on_cpu.workspace(args));
    args.workspace = workspace.data();
    on_cpu.run(args);
  } else {
    on_cpu.run(args);
  }
}

}  // namespace bigmodel::binding
