// attention_weights' gradients: those of attention with dP given and delta 0.
#include "cuda/attention_backward.cuh"

namespace bigmodel::cuda {
namespace {

void run_all(const AttentionWeightsBackwardArgs& args, Workspace& workspace, const Place* place) {
  const AttentionBackwardArgs lse_alone{.inputs = args.inputs, .lse = args.lse};
  const auto heads = static_cast<float>(args.inputs.query.size[1]);
  const PlainBackward pass{.inputs = args.inputs,
                           .grad_weights = args.grad_weights,
                           .grad_weights_scale = args.average_heads ? 1.0f / heads : 1.0f,
                           .terms = row_terms(lse_alone, workspace, place)};
  if (!place) return;
  if (args.grad_query.data) run_plain(pass, PlainGradient::query, args.grad_query, *place);
  if (args.grad_key.data) run_plain(pass, PlainGradient::key, args.grad_key, *place);
  if (args.grad_lse.data) run_plain(pass, PlainGradient::lse, args.grad_lse, *place);
  if (args.grad_mask.data) run_plain(pass, PlainGradient::mask, args.grad_mask, *place);
}

}  // namespace

std::int64_t workspace_bytes(const AttentionWeightsBackwardArgs& args, const Place&) {
  Workspace workspace;
  run_all(args, workspace, nullptr);
  return workspace.used();
}

void run(const AttentionWeightsBackwardArgs& args, const Place& place) {
  Workspace workspace(args.workspace);
  run_all(args, workspace, &place);
}

}  // namespace bigmodel::cuda
