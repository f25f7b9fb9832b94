// linear, forward and backward: every dtype and activation, packed or not, few rows and many.
#include "activations.h"
#include "tensors.h"

namespace bigmodel::test {

namespace {

struct Case {
  std::int64_t rows, in, out;
  Activation activation;
  bool bias, residual, packed, saved;
  std::int64_t gap;
};

template <class T>
class LinearTest {
 public:
  explicit LinearTest(const Case& c) : c_(c), random_(c.rows * 31 + c.out) {
    input_ = filled({c.rows, c.in}, c.gap);
    weight_ = filled({c.out, c.in}, c.gap);
    if (c.bias) bias_ = filled({c.out}, 1);
    if (c.residual) residual_ = filled({c.rows, c.out}, c.gap);
    grad_output_ = filled({c.rows, c.out}, c.gap);
    output_ = filled({c.rows, c.out}, 1);
    if (c.saved) preactivation_ = filled({c.rows, c.out}, 1);
  }

  void forward() {
    LinearForwardArgs args{};
    args.input = input_.view();
    args.weight = weight_.view();
    args.bias = bias_.view();
    args.residual = residual_.view();
    args.activation = c_.activation;
    args.output = output_.view();
    args.preactivation = preactivation_.view();
    Guarded<char> packed(static_cast<std::size_t>(c_.packed ? cpu::kernels().linear_packed_bytes(weight_.view()) : 0),
                         64);
    if (c_.packed) {
      run(cpu::kernels().linear_pack, LinearPackArgs{weight_.view(), packed.data()});
      args.packed_weight = packed.data();
    }
    run(cpu::kernels().linear_forward, args);
    for (std::int64_t i = 0; i < c_.rows; ++i) {
      for (std::int64_t j = 0; j < c_.out; ++j) {
        const Sum z = preactivation(i, j);
        const double value = activate(c_.activation, z.value), want = value + residual_.at({i, j});
        const double size = z.size + std::fabs(value) + std::fabs(residual_.at({i, j}));
        check_close(output_.at({i, j}), want, allowed<T>(want, size), "linear %s (%d, %d) of %dx%dx%d", Format<T>::name,
                    int(i), int(j), int(c_.rows), int(c_.out), int(c_.in));
        if (c_.saved)
          check_close(preactivation_.at({i, j}), z.value, allowed<T>(z.value, z.size), "preactivation (%d, %d)", int(i),
                      int(j));
      }
    }
  }

  void backward() {
    Tensor grad_input = filled({c_.rows, c_.in}, 1), grad_weight = filled({c_.out, c_.in}, 1), grad_bias;
    if (c_.bias) grad_bias = filled({c_.out}, 1);
    LinearBackwardArgs args{};
    args.grad_output = grad_output_.view();
    args.input = input_.view();
    args.weight = weight_.view();
    args.bias = bias_.view();
    args.preactivation = preactivation_.view();
    args.activation = c_.activation;
    args.grad_input = grad_input.view();
    args.grad_weight = grad_weight.view();
    args.grad_bias = grad_bias.view();
    run(cpu::kernels().linear_backward, args);
    // The gradient of the preactivation; its error includes what an error of the preactivation makes of it.
    std::vector<Sum> grad(c_.rows * c_.out);
    for (std::int64_t i = 0; i < c_.rows; ++i) {
      for (std::int64_t j = 0; j < c_.out; ++j) {
        const Sum z = preactivation(i, j);
        const double value = c_.saved ? preactivation_.at({i, j}) : z.value, g = grad_output_.at({i, j});
        const double slope = derivative(c_.activation, value);
        grad[i * c_.out + j] = {g * slope, std::fabs(g) * (std::fabs(slope) + (smooth() ? z.size : 0.0))};
      }
    }
    for (std::int64_t i = 0; i < c_.rows; ++i) {
      for (std::int64_t k = 0; k < c_.in; ++k) {
        Sum sum;
        for (std::int64_t j = 0; j < c_.out; ++j) sum.add(grad[i * c_.out + j], weight_.at({j, k}));
        check_close(grad_input.at({i, k}), sum.value, allowed<T>(sum.value, sum.size), "grad_input (%d, %d)", int(i),
                    int(k));
      }
    }
    for (std::int64_t j = 0; j < c_.out; ++j) {
      Sum bias;
      for (std::int64_t i = 0; i < c_.rows; ++i) bias.add(grad[i * c_.out + j], 1.0);
      if (c_.bias)
        check_close(grad_bias.at({j}), bias.value, allowed<T>(bias.value, bias.size), "grad_bias %d", int(j));
      for (std::int64_t k = 0; k < c_.in; ++k) {
        Sum sum;
        for (std::int64_t i = 0; i < c_.rows; ++i) sum.add(grad[i * c_.out + j], input_.at({i, k}));
        check_close(grad_weight.at({j, k}), sum.value, allowed<T>(sum.value, sum.size), "grad_weight (%d, %d)", int(j),
                    int(k));
      }
    }
  }

 private:
  bool smooth() const { return c_.activation != Activation::none && c_.activation != Activation::relu; }

  Tensor filled(std::initializer_list<std::int64_t> sizes, std::int64_t gap) {
    Tensor tensor = Tensor::make(T{}, sizes, gap);
    tensor.fill_normal(random_);
    return tensor;
  }

  Sum preactivation(std::int64_t i, std::int64_t j) const {
    Sum sum;
    sum.add(bias_.at({j}));
    for (std::int64_t k = 0; k < c_.in; ++k) sum.add(input_.at({i, k}) * weight_.at({j, k}));
    return sum;
  }

  const Case c_;
  Random random_;
  Tensor input_, weight_, bias_, residual_, output_, preactivation_, grad_output_;
};

template <class T>
void check_cases() {
  for (const Activation activation :
       {Activation::none, Activation::relu, Activation::gelu, Activation::gelu_tanh, Activation::silu}) {
    const bool kinked = activation == Activation::relu;  // recomputed, a bf16 sum near 0 may fall on the other side
    const Case cases[] = {
        {1, 1, 1, activation, true, false, false, true, 1},
        {2, 37, 19, activation, true, true, true, true, 1},
        {23, 520, 65, activation, false, true, false, kinked, 1},
        {67, 33, 600, activation, true, false, true, true, 2},
        {5, 300, 35, activation, true, true, false, kinked, 1},
        {23, 40, 65, activation, false, true, false, kinked, 1},
        {67, 33, 50, activation, true, false, true, true, 2},
        {16, 96, 130, activation, true, true, false, kinked, 1},
        {31, 34, 115, activation, false, true, false, kinked, 1},
    };
    for (const Case& c : cases) {
      LinearTest<T> test(c);
      test.forward();
      test.backward();
    }
  }
}

}  // namespace

void test_linear() {
  check_cases<float>();
  check_cases<bfloat16>();
  check_cases<float16>();
}

}  // namespace bigmodel::test
