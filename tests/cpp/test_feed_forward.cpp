// feed_forward, forward and backward: every gate, with biases, residual and dropout, packed or not.
#include <utility>

#include "activations.h"
#include "dropout.h"
#include "tensors.h"

namespace bigmodel::test {

namespace {

struct Case {
  std::int64_t rows, width, hidden, out;
  Activation activation;
  Gate gate;
  double dropout;
  bool packed, saved;
};

// A matrix of doubles, with the size of what was summed up for each.
struct Matrix {
  std::int64_t columns = 0;
  std::vector<Sum> sums;

  Matrix(std::int64_t rows, std::int64_t columns_) : columns(columns_), sums(rows * columns_) {}
  Sum& operator()(std::int64_t i, std::int64_t j) { return sums[i * columns + j]; }
  const Sum& operator()(std::int64_t i, std::int64_t j) const { return sums[i * columns + j]; }
};

template <class T>
class FeedForwardTest {
 public:
  explicit FeedForwardTest(const Case& c)
      : c_(c),
        random_(17),
        gate_width_(c.gate == Gate::input ? c.width : c.hidden),
        input_(filled({c.rows, c.width})),
        residual_(filled({c.rows, c.out})),
        w1_(filled({c.hidden, c.width}, 0.3)),
        b1_(filled({c.hidden})),
        w2_(filled({c.out, c.hidden}, 0.3)),
        b2_(filled({c.out})),
        output_(filled({c.rows, c.out})),
        grad_output_(filled({c.rows, c.out})) {
    if (c.gate != Gate::none) {
      w_gate_ = filled({gate_width_, c.width}, 0.3);
      b_gate_ = filled({gate_width_});
    }
    if (c.saved) {
      preactivation_ = filled({c.rows, c.hidden});
      if (c.gate != Gate::none) gate_preactivation_ = filled({c.rows, gate_width_});
    }
    dropout_ = {c.dropout, 0x123456789abcdefu};
  }

  void forward() {
    FeedForwardForwardArgs args{};
    args.input = input_.view();
    args.residual = residual_.view();
    args.weights = weights();
    args.activation = c_.activation;
    args.gate = c_.gate;
    args.dropout = dropout_;
    args.output = output_.view();
    args.preactivation = preactivation_.view();
    args.gate_preactivation = gate_preactivation_.view();
    Guarded<char> w1(packed_bytes(w1_), 64), w2(packed_bytes(w2_), 64), w_gate(packed_bytes(w_gate_), 64);
    if (c_.packed) {
      args.packed_w1 = pack(w1_, w1);
      args.packed_w2 = pack(w2_, w2);
      if (c_.gate != Gate::none) args.packed_w_gate = pack(w_gate_, w_gate);
    }
    run(cpu::kernels().feed_forward_forward, args);
    const Passes want = naive();
    compare(output_, want.output, "output");
    if (c_.saved) compare(preactivation_, want.z, "preactivation");
    if (c_.saved && c_.gate != Gate::none) compare(gate_preactivation_, want.gate, "gate_preactivation");
  }

  void backward() {
    Tensor grad_input = filled({c_.rows, c_.width}), grad_w1 = filled({c_.hidden, c_.width}),
           grad_b1 = filled({c_.hidden}), grad_w2 = filled({c_.out, c_.hidden}), grad_b2 = filled({c_.out}),
           grad_w_gate, grad_b_gate;
    if (c_.gate != Gate::none) {
      grad_w_gate = filled({gate_width_, c_.width});
      grad_b_gate = filled({gate_width_});
    }
    FeedForwardBackwardArgs args{};
    args.grad_output = grad_output_.view();
    args.input = input_.view();
    args.weights = weights();
    args.preactivation = preactivation_.view();
    args.gate_preactivation = gate_preactivation_.view();
    args.activation = c_.activation;
    args.gate = c_.gate;
    args.dropout = dropout_;
    args.grad_input = grad_input.view();
    args.grad_w1 = grad_w1.view();
    args.grad_b1 = grad_b1.view();
    args.grad_w2 = grad_w2.view();
    args.grad_b2 = grad_b2.view();
    args.grad_w_gate = grad_w_gate.view();
    args.grad_b_gate = grad_b_gate.view();
    run(cpu::kernels().feed_forward_backward, args);
    check_gradients(grad_input, grad_w1, grad_b1, grad_w2, grad_b2, grad_w_gate, grad_b_gate);
  }

 private:
  struct Passes {
    Matrix gate, x, z, hidden, output;
  };

  Tensor filled(std::initializer_list<std::int64_t> sizes, double deviation = 1.0) {
    Tensor tensor = Tensor::make(T{}, sizes);
    tensor.fill([&] { return deviation * random_.normal(); });
    return tensor;
  }
  FeedForwardWeights weights() const {
    return {w1_.view(), b1_.view(), w2_.view(), b2_.view(), w_gate_.view(), b_gate_.view()};
  }
  std::size_t packed_bytes(const Tensor& weight) const {
    return c_.packed && weight.present() ? static_cast<std::size_t>(cpu::kernels().linear_packed_bytes(weight.view()))
                                         : 0;
  }
  const void* pack(const Tensor& weight, Guarded<char>& packed) const {
    run(cpu::kernels().linear_pack, LinearPackArgs{weight.view(), packed.data()});
    return packed.data();
  }

  // x weight^T + bias, x given by its values; sizes carry the error that x itself may have.
  static Matrix product(const Matrix& x, const Tensor& weight, const Tensor& bias, std::int64_t rows,
                        std::int64_t columns) {
    Matrix y(rows, columns);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) {
        y(i, j).add(bias.at({j}));
        for (std::int64_t k = 0; k < x.columns; ++k) {
          y(i, j).value += x(i, k).value * weight.at({j, k});
          y(i, j).size += x(i, k).size * std::fabs(weight.at({j, k}));
        }
      }
    }
    return y;
  }
  double factor(std::int64_t i, std::int64_t j) const {
    return dropout_factor(dropout_, 0, 0, std::uint32_t(i), std::uint32_t(j));
  }

  Passes naive() const {
    Matrix input(c_.rows, c_.width);
    for (std::int64_t i = 0; i < c_.rows; ++i)
      for (std::int64_t k = 0; k < c_.width; ++k) input(i, k).add(input_.at({i, k}));
    Matrix gate(c_.rows, gate_width_), x = input;
    if (c_.gate != Gate::none) gate = product(input, w_gate_, b_gate_, c_.rows, gate_width_);
    if (c_.gate == Gate::input) {
      for (std::size_t e = 0; e < x.sums.size(); ++e) {
        const double s = sigmoid(gate.sums[e].value), value = x.sums[e].value;
        x.sums[e] = {value * s, std::fabs(value) * (s + gate.sums[e].size)};
      }
    }
    Matrix z = product(x, w1_, b1_, c_.rows, c_.hidden), hidden(c_.rows, c_.hidden);
    for (std::int64_t i = 0; i < c_.rows; ++i) {
      for (std::int64_t j = 0; j < c_.hidden; ++j) {
        const Sum a = c_.gate == Gate::hidden ? gate(i, j) : z(i, j);
        const double active = activate(c_.activation, a.value), other = c_.gate == Gate::hidden ? z(i, j).value : 1.0;
        hidden(i, j).value = active * other * factor(i, j);
        hidden(i, j).size = (std::fabs(active * other) + 2.0 * a.size * std::fabs(other) +
                             (c_.gate == Gate::hidden ? std::fabs(active) * z(i, j).size : 0.0)) *
                            factor(i, j);
      }
    }
    Matrix output = product(hidden, w2_, b2_, c_.rows, c_.out);
    for (std::int64_t i = 0; i < c_.rows; ++i)
      for (std::int64_t j = 0; j < c_.out; ++j) output(i, j).add(residual_.at({i, j}));
    return {gate, x, z, hidden, output};
  }

  void compare(const Tensor& got, const Matrix& want, const char* name) const {
    for (std::int64_t i = 0; i < c_.rows; ++i) {
      for (std::int64_t j = 0; j < want.columns; ++j) {
        const Sum& sum = want(i, j);
        check_close(got.at({i, j}), sum.value, allowed<T>(sum.value, sum.size), "feed_forward %s %s (%d, %d), gate %d",
                    Format<T>::name, name, int(i), int(j), int(c_.gate));
      }
    }
  }

  // The loss that the gradients are of, for one input replaced by x: grad_output . output, in double.
  double loss() const {
    const Passes passes = naive();
    double total = 0.0;
    for (std::int64_t i = 0; i < c_.rows; ++i)
      for (std::int64_t j = 0; j < c_.out; ++j) total += grad_output_.at({i, j}) * passes.output(i, j).value;
    return total;
  }

  // Central differences of the loss by a handful of elements: steps are exact in T, the naive pass is in double.
  void check_gradient(const Tensor& gradient, Tensor& variable, std::int64_t rows, std::int64_t columns,
                      const char* name) {
    for (int sample = 0; sample < 6; ++sample) {
      const std::int64_t i = random_.next() % rows, j = random_.next() % columns;
      const auto set = [&](double x) { rows == 1 ? variable.set({j}, x) : variable.set({i, j}, x); };
      const double x = rows == 1 ? variable.at({j}) : variable.at({i, j}),
                   got = rows == 1 ? gradient.at({j}) : gradient.at({i, j});
      set(x + 0x1p-8 * (std::fabs(x) + 1.0));
      const double above = rows == 1 ? variable.at({j}) : variable.at({i, j}), loss_above = loss();
      set(x - 0x1p-8 * (std::fabs(x) + 1.0));
      const double below = rows == 1 ? variable.at({j}) : variable.at({i, j}), loss_below = loss();
      set(x);
      const double want = (loss_above - loss_below) / (above - below);
      const double bound = (sizeof(T) == 4 ? 2e-3 : 0.08) * (std::fabs(want) + scale_);
      check_close(got, want, bound, "feed_forward %s %s (%d, %d), gate %d, activation %d", Format<T>::name, name,
                  int(i), int(j), int(c_.gate), int(c_.activation));
    }
  }

  void check_gradients(const Tensor& grad_input, const Tensor& grad_w1, const Tensor& grad_b1, const Tensor& grad_w2,
                       const Tensor& grad_b2, const Tensor& grad_w_gate, const Tensor& grad_b_gate) {
    scale_ = std::sqrt(double(c_.rows));  // the typical size of a sum over the rows
    check_gradient(grad_input, input_, c_.rows, c_.width, "grad_input");
    check_gradient(grad_w1, w1_, c_.hidden, c_.width, "grad_w1");
    check_gradient(grad_b1, b1_, 1, c_.hidden, "grad_b1");
    check_gradient(grad_w2, w2_, c_.out, c_.hidden, "grad_w2");
    check_gradient(grad_b2, b2_, 1, c_.out, "grad_b2");
    if (c_.gate == Gate::none) return;
    check_gradient(grad_w_gate, w_gate_, gate_width_, c_.width, "grad_w_gate");
    check_gradient(grad_b_gate, b_gate_, 1, gate_width_, "grad_b_gate");
  }

  const Case c_;
  Random random_;
  const std::int64_t gate_width_;
  Tensor input_, residual_, w1_, b1_, w2_, b2_, w_gate_, b_gate_, output_, grad_output_, preactivation_,
      gate_preactivation_;
  Dropout dropout_;
  double scale_ = 1.0;
};

template <class T>
void check_cases() {
  for (const Gate gate : {Gate::none, Gate::hidden, Gate::input}) {
    for (const Activation activation : {Activation::gelu, Activation::silu, Activation::gelu_tanh}) {
      FeedForwardTest<T> test(
          {9, 13, 21, 10, activation, gate, 0.0, activation == Activation::silu, activation == Activation::gelu});
      test.forward();
      test.backward();
    }
    FeedForwardTest<T> relu({21, 33, 40, 17, Activation::relu, gate, 0.25, false, true});
    relu.forward();
    for (const auto& [rows, hidden] : {std::pair{6, 19}, std::pair{40, 300}, std::pair{16, 130}}) {
      FeedForwardTest<T> dropped({rows, 12, hidden, 11, Activation::silu, gate, 0.25, false, false});
      dropped.forward();
      dropped.backward();
    }
    // Rows that one job takes through both products, on targets that do so.
    FeedForwardTest<T> many({383, 12, 70, 11, Activation::gelu, gate, 0.25, false, true});
    many.forward();
    if (gate == Gate::none) many.backward();
    FeedForwardTest<T> deep({97, 20, 1091, 11, Activation::silu, gate, 0.0, true, false});
    deep.forward();
  }
}

}  // namespace

void test_feed_forward() {
  check_cases<float>();
  check_cases<bfloat16>();
  check_cases<float16>();
}

}  // namespace bigmodel::test
