// linear: one product, with bias, activation and residual in its epilogue.
#include "cuda/matrix_product.cuh"

namespace bigmodel::cuda {
namespace {

template <class T>
void run_as(const LinearForwardArgs& args, Workspace& workspace, const Place* place) {
  const TensorView bias = as_row(args.bias);
  const Epilogue<T> epilogue{.bias = Rows<T>(bias),
                             .residual = Rows<T>(args.residual),
                             .preactivation = Rows<T>(args.preactivation),
                             .output = Rows<T>(args.output),
                             .activation = args.activation,
                             .columns = static_cast<int>(args.weight.size[0]),
                             .packed = all_packed<T>(bias, args.residual, args.preactivation, args.output)};
  multiply_matrices<T>(args.input, args.weight, epilogue, workspace, place);
}

}  // namespace

std::int64_t workspace_bytes(const LinearForwardArgs& args, const Place& place) {
  Workspace workspace;
  with_product_type(args.input.dtype, place, [&]<class T>(T) { run_as<T>(args, workspace, nullptr); });
  return workspace.used();
}

void run(const LinearForwardArgs& args, const Place& place) {
  Workspace workspace(args.workspace);
  with_product_type(args.input.dtype, place, [&]<class T>(T) { run_as<T>(args, workspace, &place); });
}

}  // namespace bigmodel::cuda
