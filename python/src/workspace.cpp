#include "workspace.h"

#include <atomic>
#include <cstdlib>

namespace bigmodel::binding {
namespace {

constexpr std::int64_t line = 64, most_small = std::int64_t{512} << 10, most_kept = std::int64_t{64} << 20;

// The larger workspace while no call uses it. The C library would give memory of many megabytes back at the end of each
// call, and to get 4 KiB of it again takes about a microsecond: a sixth of a training step's feed-forward layer.
std::atomic<Tensor*> kept_workspace{nullptr};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

}  // namespace

Workspace::Workspace(const Call& call, std::int64_t bytes) {
  if (bytes <= 0) return;
  if (bytes > most_small) {
    // torch aligns fresh CPU memory to lines already; the spare one makes sure with any allocator.
    bytes += line;
    if (bytes <= most_kept) large_.reset(kept_workspace.exchange(nullptr));
    if (!large_ || large_->numel() < bytes) {
      large_.reset();
      large_ = std::make_unique<Tensor>(call.bytes(bytes));
    }
    const auto address = reinterpret_cast<std::uintptr_t>(large_->mutable_data_ptr());
    data_ = reinterpret_cast<void*>((address + line - 1) / line * line);
    return;
  }
  // Calls do not nest within a thread.
  static thread_local std::unique_ptr<void, Free> kept;
  if (!kept) kept.reset(std::aligned_alloc(line, most_small));
  data_ = kept.get();
  call.check(data_, "needs a workspace of ", bytes, " bytes, which the system does not give");
}

// Of two threads' workspaces the one that comes later stays.
Workspace::~Workspace() {
  if (large_ && large_->numel() <= most_kept) delete kept_workspace.exchange(large_.release());
}

void release_workspace() { delete kept_workspace.exchange(nullptr); }

}  // namespace bigmodel::binding
