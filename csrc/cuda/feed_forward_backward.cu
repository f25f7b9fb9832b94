// feed_forward's gradients. With h the hidden layer after dropout, z and z_gate the preactivations, x' the gated input:
//   grad_w2 = grad_output^T h,  grad_h = grad_output w2;  the derivatives of activation and gate are taken in the
//   epilogue of grad_h's product, and give grad_z (and grad_z_gate);
//   grad_w1 = grad_z^T x',  grad_x' = grad_z w1;  and so on through the gate.
#include "cuda/activation_gradient.cuh"
#include "cuda/feed_forward.cuh"

namespace bigmodel::cuda {
namespace {

template <class T>
class Backward {
 public:
  Backward(const FeedForwardBackwardArgs& args, Workspace& workspace, const Place* place)
      : args_(args), w_(args.weights), shape_(args.input, args.weights), workspace_(workspace), place_(place) {}

  void run() {
    restore();
    weight_gradient(args_.grad_output, hidden_, args_.grad_w2, args_.grad_b2);
    const bool first_wanted = args_.grad_input.data || args_.grad_w1.data || args_.grad_b1.data ||
                              args_.grad_w_gate.data || args_.grad_b_gate.data;
    if (!first_wanted) return;
    const bool gated = args_.gate == Gate::hidden;
    const TensorView grad_z = take(shape_.hidden), grad_gate = gated ? take(shape_.hidden) : TensorView{};
    using Kind = typename GradientEpilogue<T>::Kind;
    gradient_product(args_.grad_output, w_.w2, gated ? Kind::gated : Kind::activation, gated ? gate_ : z_,
                     gated ? z_ : TensorView{}, grad_z, grad_gate);
    weight_gradient(grad_z, x_, args_.grad_w1, args_.grad_b1);
    if (gated) {
      weight_gradient(grad_gate, args_.input, args_.grad_w_gate, args_.grad_b_gate);
      through_both(grad_z, w_.w1, grad_gate, args_.grad_input);
    } else if (args_.gate == Gate::input) {
      const TensorView direct = take(shape_.width), grad_gate_input = take(shape_.width);
      gradient_product(grad_z, w_.w1, Kind::sigmoid, gate_, args_.input, direct, grad_gate_input);
      weight_gradient(grad_gate_input, args_.input, args_.grad_w_gate, args_.grad_b_gate);
      if (args_.grad_input.data) product(grad_gate_input, transposed(w_.w_gate), direct, args_.grad_input);
    } else if (args_.grad_input.data) {
      product(grad_z, transposed(w_.w1), {}, args_.grad_input);
    }
  }

 private:
  TensorView take(std::int64_t columns) { return take_matrix<T>(workspace_, args_.input.dtype, shape_.rows, columns); }

  // z_, gate_, x_ and hidden_: from what the forward pass saved, or by computing it again.
  void restore() {
    hidden_ = take(shape_.hidden);
    z_ = args_.preactivation;
    gate_ = args_.gate_preactivation;
    x_ = args_.input;
    const FirstLayer layer{args_.input, w_, args_.activation, args_.gate, args_.dropout};
    if (!z_.data || (args_.gate != Gate::none && !gate_.data)) {
      z_ = take(shape_.hidden);
      if (args_.gate != Gate::none) gate_ = take(args_.gate == Gate::hidden ? shape_.hidden : shape_.width);
      x_ = run_first_layer<T>(layer, z_, gate_, hidden_, workspace_, place_);
      return;
    }
    if (args_.gate == Gate::input) {
      x_ = take(shape_.width);
      element_wise(gate_, args_.input, x_, true);
    }
    if (args_.gate == Gate::hidden) {
      element_wise(gate_, z_, hidden_, false);
    } else {
      element_wise(z_, {}, hidden_, false);
    }
  }

  // output = sigmoid(z) factor for the gated input, activation(z) factor dropout for the hidden layer.
  void element_wise(const TensorView& z, const TensorView& factor, const TensorView& output, bool sigmoid) {
    const Epilogue<T> epilogue{.factor = Rows<T>(factor),
                               .output = Rows<T>(output),
                               .activation = args_.activation,
                               .sigmoid = sigmoid,
                               .dropout = sigmoid ? DropoutRule(Dropout{}) : DropoutRule(args_.dropout),
                               .columns = static_cast<int>(output.size[1]),
                               .packed = all_packed<T>(factor, output)};
    apply_epilogue<T>(z, epilogue, place_);
  }

  void weight_gradient(const TensorView& grad, const TensorView& x, const TensorView& grad_weight,
                       const TensorView& grad_bias) {
    if (grad_bias.data) run_activation_gradient({.grad_output = grad, .grad_bias = grad_bias}, workspace_, place_);
    if (grad_weight.data) product(transposed(grad), transposed(x), {}, grad_weight);
  }

  // left right^T + residual
  void product(const TensorView& left, const TensorView& right, const TensorView& residual, const TensorView& output) {
    multiply_matrices<T>(left, right, storing<T>(output, residual), workspace_, place_);
  }

  void gradient_product(const TensorView& grad, const TensorView& weight, typename GradientEpilogue<T>::Kind kind,
                        const TensorView& z, const TensorView& other, const TensorView& first,
                        const TensorView& second) {
    const bool hidden = kind != GradientEpilogue<T>::Kind::sigmoid;
    const GradientEpilogue<T> epilogue{.kind = kind,
                                       .z = Rows<T>(z),
                                       .other = Rows<T>(other),
                                       .first = Rows<T>(first),
                                       .second = Rows<T>(second),
                                       .activation = args_.activation,
                                       .dropout = hidden ? DropoutRule(args_.dropout) : DropoutRule(Dropout{}),
                                       .columns = static_cast<int>(first.size[1]),
                                       .packed = all_packed<T>(z, other, first, second)};
    multiply_matrices<T>(grad, transposed(weight), epilogue, workspace_, place_);
  }

  void through_both(const TensorView& grad_z, const TensorView& w1, const TensorView& grad_gate,
                    const TensorView& grad_input) {
    if (!grad_input.data) return;
    const TensorView part = take(shape_.width);
    product(grad_z, transposed(w1), {}, part);
    product(grad_gate, transposed(w_.w_gate), part, grad_input);
  }

  const FeedForwardBackwardArgs& args_;
  const FeedForwardWeights& w_;
  FeedForwardShape shape_;
  Workspace& workspace_;
  const Place* place_;
  TensorView z_, gate_, x_, hidden_;
};

constexpr auto work = []<class T>(T, const FeedForwardBackwardArgs& args, Workspace& workspace, const Place* place) {
  Backward<T>(args, workspace, place).run();
};

}  // namespace

std::int64_t workspace_bytes(const FeedForwardBackwardArgs& args, const Place& place) {
  return product_bytes(args, place, work);
}

void run(const FeedForwardBackwardArgs& args, const Place& place) { run_products(args, place, work); }

}  // namespace bigmodel::cuda
