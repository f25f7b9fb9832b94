// The memory that a kernel works in.
#pragma once

#include <cstdint>
#include <memory>

#include "call.h"

namespace bigmodel::binding {

// Bytes for a kernel's workspace, aligned to cache lines: nothing is allocated where nothing is needed. Up to a size
// one is kept for the next call, whose kernel finds its pages in place and perhaps in the cache: for each thread a
// small one from the C library, since a tensor takes longer than a small kernel's loops, and in all one larger one from
// torch, whose profiler sees it when it is allocated.
class Workspace {
 public:
  Workspace(const Call& call, std::int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return data_; }

 private:
  std::unique_ptr<Tensor> large_;
  void* data_ = nullptr;
};

// Gives the larger one back to the system, unless a call is using it.
void release_workspace();

}  // namespace bigmodel::binding
