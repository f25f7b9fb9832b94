// feed_forward: the first product with bias, activation, gate and dropout in its epilogue, then the second.
#include "cuda/feed_forward.cuh"

namespace bigmodel::cuda {
namespace {

template <class T>
void run_as(const FeedForwardForwardArgs& args, Workspace& workspace, const Place* place) {
  const FeedForwardWeights& w = args.weights;
  const FeedForwardShape shape(args.input, w);
  const FirstLayer layer{args.input, w, args.activation, args.gate, args.dropout};
  const TensorView hidden = take_matrix<T>(workspace, args.input.dtype, shape.rows, shape.hidden);
  run_first_layer<T>(layer, args.preactivation, args.gate_preactivation, hidden, workspace, place);
  const TensorView bias = as_row(w.b2);
  const Epilogue<T> epilogue{.bias = Rows<T>(bias),
                             .residual = Rows<T>(args.residual),
                             .output = Rows<T>(args.output),
                             .columns = static_cast<int>(shape.out_width),
                             .packed = all_packed<T>(bias, args.residual, args.output)};
  multiply_matrices<T>(hidden, w.w2, epilogue, workspace, place);
}

}  // namespace

std::int64_t workspace_bytes(const FeedForwardForwardArgs& args, const Place& place) {
  Workspace workspace;
  with_product_type(args.input.dtype, place, [&]<class T>(T) { run_as<T>(args, workspace, nullptr); });
  return workspace.used();
}

void run(const FeedForwardForwardArgs& args, const Place& place) {
  Workspace workspace(args.workspace);
  with_product_type(args.input.dtype, place, [&]<class T>(T) { run_as<T>(args, workspace, &place); });
}

}  // namespace bigmodel::cuda
