// linear: one product, with bias, activation and residual in its epilogue.
#include "cuda/matrix_product.cuh"

namespace bigmodel::cuda {
namespace {

constexpr auto work = []<class T>(T, const LinearForwardArgs& args, Workspace& workspace, const Place* place) {
  const TensorView bias = as_row(args.bias);
  const Epilogue<T> epilogue{.bias = Rows<T>(bias),
                             .residual = Rows<T>(args.residual),
                             .preactivation = Rows<T>(args.preactivation),
                             .output = Rows<T>(args.output),
                             .activation = args.activation,
                             .columns = static_cast<int>(args.weight.size[0]),
                             .packed = all_packed<T>(bias, args.residual, args.preactivation, args.output)};
  multiply_matrices<T>(args.input, args.weight, epilogue, workspace, place);
};

}  // namespace

std::int64_t workspace_bytes(const LinearForwardArgs& args, const Place& place) {
  return product_bytes(args, place, work);
}

void run(const LinearForwardArgs& args, const Place& place) { run_products(args, place, work); }

}  // namespace bigmodel::cuda
