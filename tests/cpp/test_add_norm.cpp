// LayerNorm and RMSNorm of a sum, forward and backward.
#include "tensors.h"

namespace bigmodel::test {

namespace {

struct Case {
  std::int64_t rows, width;
  NormKind kind;
  bool residual, weight, bias;
  std::int64_t gap;  // of the inputs' last dimension
  double mean;       // of the inputs: large beside their deviation, it must not cost accuracy
};

constexpr double eps = 1e-5;

// The statistics of a row of the sum, and what is normalised.
struct Row {
  double mean = 0.0, rstd = 0.0;
  std::vector<double> x;
};

template <class Sum>
Row normalise(const Case& c, Sum sum) {
  Row row;
  double variance = 0.0;
  for (std::int64_t j = 0; j < c.width && c.kind == NormKind::layer; ++j) row.mean += sum(j) / double(c.width);
  for (std::int64_t j = 0; j < c.width; ++j) variance += (sum(j) - row.mean) * (sum(j) - row.mean) / double(c.width);
  row.rstd = 1.0 / std::sqrt(variance + eps);
  for (std::int64_t j = 0; j < c.width; ++j) row.x.push_back((sum(j) - row.mean) * row.rstd);
  return row;
}

template <class T, class W>
class AddNormTest {
 public:
  explicit AddNormTest(const Case& c)
      : c_(c),
        random_(5),
        input_(Tensor::make(T{}, {c.rows, c.width}, c.gap)),
        normed_(Tensor::make(T{}, {c.rows, c.width})),
        rstd_(Tensor::make(0.0f, {c.rows})),
        grad_normed_(Tensor::make(T{}, {c.rows, c.width}, c.gap)),
        grad_input_(Tensor::make(T{}, {c.rows, c.width})) {
    input_.fill([&] { return c.mean + random_.normal(); });
    grad_normed_.fill_normal(random_);
    if (c.residual) {
      residual_ = Tensor::make(T{}, {c.rows, c.width}, c.gap);
      residual_.fill_normal(random_);
      sum_ = Tensor::make(T{}, {c.rows, c.width});
      grad_sum_ = Tensor::make(T{}, {c.rows, c.width}, c.gap);
      grad_sum_.fill_normal(random_);
    }
    if (c.weight) weight_ = vector(), grad_weight_ = vector();
    if (c.bias) bias_ = vector(), grad_bias_ = vector();
    if (c.kind == NormKind::layer) mean_ = Tensor::make(0.0f, {c.rows});
  }

  void run_both() {
    run(cpu::kernels().add_norm_forward,
        AddNormForwardArgs{input_.view(), residual_.view(), weight_.view(), bias_.view(), c_.kind, float(eps),
                           sum_.view(), normed_.view(), mean_.view(), rstd_.view()});
    check_forward();
    AddNormBackwardArgs args;
    args.grad_normed = grad_normed_.view();
    args.grad_sum = grad_sum_.view();
    args.sum = c_.residual ? sum_.view() : input_.view();
    args.weight = weight_.view();
    args.mean = mean_.view();
    args.rstd = rstd_.view();
    args.kind = c_.kind;
    args.grad_input = grad_input_.view();
    args.grad_weight = grad_weight_.view();
    args.grad_bias = grad_bias_.view();
    run(cpu::kernels().add_norm_backward, args);
    check_backward();
  }

 private:
  Tensor vector() {
    Tensor tensor = Tensor::make(W{}, {c_.width});
    tensor.fill_normal(random_);
    return tensor;
  }

  void check_forward() {
    for (std::int64_t i = 0; i < c_.rows; ++i) {
      // The sum as it is stored, which is what the contract normalises.
      const Row row = normalise(
          c_, [&](std::int64_t j) { return Format<T>::round(float(input_.at({i, j})) + float(residual_.at({i, j}))); });
      check_close(rstd_.at({i}), row.rstd, 1e-5 * row.rstd, "rstd of row %d", int(i));
      if (mean_.present())
        check_close(mean_.at({i}), row.mean, 2e-7 * std::fabs(row.mean) + 1e-6, "mean of row %d", int(i));
      for (std::int64_t j = 0; j < c_.width; ++j) {
        if (c_.residual) {
          const double want = input_.at({i, j}) + residual_.at({i, j});
          check_close(sum_.at({i, j}), want, Format<T>::epsilon * std::fabs(want), "sum (%d, %d)", int(i), int(j));
        }
        const double want = row.x[j] * weight_.at({j}, 1.0) + bias_.at({j});
        const double size = std::fabs(row.x[j] * weight_.at({j}, 1.0)) + std::fabs(bias_.at({j})) + 1.0;
        check_close(normed_.at({i, j}), want, Format<T>::epsilon * std::fabs(want) + 4e-6 * size,
                    "%s normed (%d, %d) of %dx%d", Format<T>::name, int(i), int(j), int(c_.rows), int(c_.width));
      }
    }
  }

  // From the sum, mean and rstd that the backward pass is given.
  void check_backward() {
    const Tensor& sum = c_.residual ? sum_ : input_;
    const double n = double(c_.width);
    std::vector<double> grad_weight(c_.width), grad_bias(c_.width), weight_size(c_.width), bias_size(c_.width);
    for (std::int64_t i = 0; i < c_.rows; ++i) {
      const double rstd = rstd_.at({i}), mean = mean_.at({i});
      const auto x = [&](std::int64_t j) { return (sum.at({i, j}) - mean) * rstd; };
      const auto g = [&](std::int64_t j) { return grad_normed_.at({i, j}) * weight_.at({j}, 1.0); };
      double mean_g = 0.0, mean_gx = 0.0, size = 0.0;
      for (std::int64_t j = 0; j < c_.width; ++j) {
        mean_g += c_.kind == NormKind::layer ? g(j) / n : 0.0;
        mean_gx += g(j) * x(j) / n;
        size += (std::fabs(g(j)) + std::fabs(g(j) * x(j))) / n;
        grad_weight[j] += grad_normed_.at({i, j}) * x(j);
        grad_bias[j] += grad_normed_.at({i, j});
        weight_size[j] += std::fabs(grad_normed_.at({i, j}) * x(j));
        bias_size[j] += std::fabs(grad_normed_.at({i, j}));
      }
      for (std::int64_t j = 0; j < c_.width; ++j) {
        const double want = rstd * (g(j) - mean_g - x(j) * mean_gx) + grad_sum_.at({i, j});
        const double terms = rstd * (std::fabs(g(j)) + size + std::fabs(x(j)) * size) + std::fabs(grad_sum_.at({i, j}));
        check_close(grad_input_.at({i, j}), want, Format<T>::epsilon * std::fabs(want) + 4e-6 * terms,
                    "%s grad_input (%d, %d) of %dx%d", Format<T>::name, int(i), int(j), int(c_.rows), int(c_.width));
      }
    }
    for (std::int64_t j = 0; j < c_.width; ++j) {
      if (grad_weight_.present())
        check_close(grad_weight_.at({j}), grad_weight[j],
                    Format<W>::epsilon * std::fabs(grad_weight[j]) + 4e-6 * weight_size[j], "grad_weight %d", int(j));
      if (grad_bias_.present())
        check_close(grad_bias_.at({j}), grad_bias[j],
                    Format<W>::epsilon * std::fabs(grad_bias[j]) + 4e-6 * bias_size[j], "grad_bias %d", int(j));
    }
  }

  const Case c_;
  Random random_;
  Tensor input_, residual_, weight_, bias_, sum_, normed_, mean_, rstd_;
  Tensor grad_normed_, grad_sum_, grad_input_, grad_weight_, grad_bias_;
};

template <class T, class W>
void check_cases() {
  for (const NormKind kind : {NormKind::layer, NormKind::rms}) {
    for (const bool residual : {false, true}) {
      for (const std::int64_t width : {1, 3, 7, 16, 33, 64, 257}) {
        AddNormTest<T, W>({5, width, kind, residual, true, kind == NormKind::layer, 1, 0.0}).run_both();
      }
      AddNormTest<T, W>({70, 37, kind, residual, true, true, 1, 0.0}).run_both();  // several parts
      AddNormTest<T, W>({4, 19, kind, residual, false, false, 1, 0.0}).run_both();
      AddNormTest<T, W>({4, 35, kind, residual, true, true, 3, 0.0}).run_both();
      AddNormTest<T, W>({3, 9001, kind, residual, true, true, 1, 0.0}).run_both();  // several blocks
    }
  }
}

}  // namespace

void test_add_norm() {
  check_cases<float, float>();
  check_cases<bfloat16, bfloat16>();
  check_cases<bfloat16, float>();
  check_cases<float16, float16>();
  AddNormTest<float, float>({3, 1024, NormKind::layer, false, true, true, 1, 1000.0}).run_both();
}

}  // namespace bigmodel::test
