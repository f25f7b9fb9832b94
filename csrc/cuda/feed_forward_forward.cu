// feed_forward: the first product with bias, activation, gate and dropout in its epilogue, then the second.
#include "cuda/feed_forward.cuh"

namespace bigmodel::cuda {
namespace {

constexpr auto work = []<class T>(T, const FeedForwardForwardArgs& args, Workspace& workspace, const Place* place) {
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
};

}  // namespace

std::int64_t workspace_bytes(const FeedForwardForwardArgs& args, const Place& place) {
  return product_bytes(args, place, work);
}

void run(const FeedForwardForwardArgs& args, const Place& place) { run_products(args, place, work); }

}  // namespace bigmodel::cuda
