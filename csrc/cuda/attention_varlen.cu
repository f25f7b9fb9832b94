// attention_varlen, forward and backward: attention's kernels, which the inputs' query_starts and key_starts tell that
// sequences are packed.
#include "bigmodel/attention_varlen.h"

#include "cuda/cuda.h"

namespace bigmodel::cuda {
namespace {

template <class Args>
auto with_workspace(const Args& args) {
  auto packed = args.packed;
  packed.workspace = args.workspace;
  return packed;
}

}  // namespace

std::int64_t workspace_bytes(const AttentionVarlenForwardArgs& args, const Place& place) {
  return workspace_bytes(args.packed, place);
}
std::int64_t workspace_bytes(const AttentionVarlenBackwardArgs& args, const Place& place) {
  return workspace_bytes(args.packed, place);
}
void run(const AttentionVarlenForwardArgs& args, const Place& place) { run(with_workspace(args), place); }
void run(const AttentionVarlenBackwardArgs& args, const Place& place) { run(with_workspace(args), place); }

}  // namespace bigmodel::cuda
