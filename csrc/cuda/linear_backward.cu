// linear's gradients: grad_z = grad_output slope(z) with its sums (the bias), then two products,
//   grad_input = grad_z weight,  grad_weight = grad_z^T input.
#include "cuda/activation_gradient.cuh"
#include "cuda/matrix_product.cuh"

namespace bigmodel::cuda {
namespace {

// z, which the forward pass may not have saved.
template <class T>
TensorView preactivation(const LinearBackwardArgs& args, Workspace& workspace, const Place* place) {
  if (args.preactivation.data || args.activation == Activation::none) return args.preactivation;
  const std::int64_t rows = args.input.size[0], columns = args.weight.size[0];
  const TensorView z = matrix_at(workspace.take<T>(rows * columns), args.input.dtype, rows, columns);
  Epilogue<T> epilogue = storing<T>(z);
  epilogue.bias = Rows<T>(as_row(args.bias));
  epilogue.packed = epilogue.packed && all_packed<T>(as_row(args.bias));
  multiply_matrices<T>(args.input, args.weight, epilogue, workspace, place);
  return z;
}

constexpr auto work = []<class T>(T, const LinearBackwardArgs& args, Workspace& workspace, const Place* place) {
  const std::int64_t rows = args.input.size[0], columns = args.weight.size[0];
  ActivationGradient gradient{
      .grad_output = args.grad_output, .activation = args.activation, .grad_bias = args.grad_bias};
  TensorView grad_z = args.grad_output;
  if (args.activation != Activation::none) {
    gradient.preactivation = preactivation<T>(args, workspace, place);
    gradient.grad_z = grad_z = matrix_at(workspace.take<T>(rows * columns), args.input.dtype, rows, columns);
  }
  if (args.activation != Activation::none || args.grad_bias.data) run_activation_gradient(gradient, workspace, place);
  if (args.grad_input.data) {
    multiply_matrices<T>(grad_z, transposed(args.weight), storing<T>(args.grad_input), workspace, place);
  }
  if (args.grad_weight.data) {
    multiply_matrices<T>(transposed(grad_z), transposed(args.input), storing<T>(args.grad_weight), workspace, place);
  }
};

}  // namespace

std::int64_t workspace_bytes(const LinearBackwardArgs& args, const Place& place) {
  return product_bytes(args, place, work);
}

void run(const LinearBackwardArgs& args, const Place& place) { run_products(args, place, work); }

}  // namespace bigmodel::cuda
