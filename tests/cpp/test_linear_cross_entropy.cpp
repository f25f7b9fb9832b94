// linear_cross_entropy, forward and backward: every dtype and option, few rows and many, one pass over the vocabulary
// and several.
#include "tensors.h"

namespace bigmodel::test {

namespace {

struct Case {
  std::int64_t rows, width, vocabulary;
  bool bias;
  float smoothing, z_loss, softcap;
  std::int64_t gap;
};

template <class T>
class CrossEntropyTest {
 public:
  explicit CrossEntropyTest(const Case& c) : c_(c), random_(c.rows * 31 + c.vocabulary) {
    hidden_ = filled({c.rows, c.width}, 1.0);
    weight_ = filled({c.vocabulary, c.width}, 1.0 / std::sqrt(double(c.width)));
    if (c.bias) bias_ = filled({c.vocabulary}, 1.0);
    grad_ = Tensor::make(0.0f, {c.rows});
    grad_.fill_normal(random_);
    options_.label_smoothing = c.smoothing;
    options_.z_loss = c.z_loss;
    options_.softcap = c.softcap;
    for (std::int64_t i = 0; i < c.rows; ++i) target_.push_back(i % 4 == 3 ? -100 : (i * 37 + 5) % c.vocabulary);
    loss_.resize(c.rows), lse_.resize(c.rows);
    for (std::int64_t i = 0; i < c.rows; ++i) rows_.push_back(row_of(i));
  }

  void run_both() {
    LinearCrossEntropyForwardArgs args;
    args.hidden = hidden_.view(), args.weight = weight_.view(), args.bias = bias_.view();
    args.target = target_.data(), args.options = options_;
    args.loss = loss_.data(), args.lse = lse_.data();
    run(cpu::kernels().linear_cross_entropy_forward, args);
    for (std::int64_t i = 0; i < c_.rows; ++i) {
      const double bound = error_of_logit() * (1.0 + 2.0 * c_.z_loss * std::fabs(rows_[i].lse)) + 1e-5;
      check_close(lse_[i], rows_[i].lse, bound, "lse %s of row %d of %d", Format<T>::name, int(i), int(c_.rows));
      check_close(loss_[i], rows_[i].loss, 2.0 * bound, "loss %s of row %d, vocabulary %d", Format<T>::name, int(i),
                  int(c_.vocabulary));
    }
    backward();
  }

 private:
  struct Row {
    std::vector<double> gradient, size;  // of the loss by the logits, times grad_loss
    double lse = 0.0, loss = 0.0;
  };

  Tensor filled(std::initializer_list<std::int64_t> sizes, double scale) {
    Tensor tensor = Tensor::make(T{}, sizes, c_.gap);
    tensor.fill([&] { return random_.normal() * scale; });
    return tensor;
  }

  // Logits are sums of about unit terms: their rounding, of products in bf16 where the target multiplies bf16.
  double error_of_logit() const { return 32.0 * 0x1p-23; }

  Row row_of(std::int64_t i) {
    Row row;
    std::vector<double> x(c_.vocabulary), slope(c_.vocabulary, 1.0);
    double sum = 0.0, mean = 0.0;
    for (std::int64_t j = 0; j < c_.vocabulary; ++j) {
      x[j] = bias_.at({j});
      for (std::int64_t k = 0; k < c_.width; ++k) x[j] += hidden_.at({i, k}) * weight_.at({j, k});
      if (c_.softcap > 0) {
        const double t = std::tanh(x[j] / c_.softcap);
        x[j] = c_.softcap * t, slope[j] = 1.0 - t * t;
      }
      sum += std::exp(x[j]);
      mean += x[j] / double(c_.vocabulary);
    }
    row.lse = std::log(sum);
    const bool ignored = target_[i] == -100;
    if (!ignored)
      row.loss = row.lse - (1.0 - c_.smoothing) * x[target_[i]] - c_.smoothing * mean + c_.z_loss * row.lse * row.lse;
    for (std::int64_t j = 0; j < c_.vocabulary; ++j) {
      const double p = std::exp(x[j] - row.lse) * (1.0 + 2.0 * c_.z_loss * row.lse);
      const double right = (j == target_[i] ? 1.0 - c_.smoothing : 0.0) + c_.smoothing / double(c_.vocabulary);
      const double factor = ignored ? 0.0 : grad_.at({i}) * slope[j];
      row.gradient.push_back(factor * (p - right));
      row.size.push_back(std::fabs(factor) * (p + right));
    }
    return row;
  }

  void backward() {
    Tensor grad_hidden = Tensor::make(T{}, {c_.rows, c_.width}),
           grad_weight = Tensor::make(T{}, {c_.vocabulary, c_.width});
    Tensor grad_bias = c_.bias ? Tensor::make(T{}, {c_.vocabulary}) : Tensor();
    LinearCrossEntropyBackwardArgs args;
    args.grad_loss = grad_.view();
    args.hidden = hidden_.view(), args.weight = weight_.view(), args.bias = bias_.view();
    args.target = target_.data(), args.lse = lse_.data(), args.options = options_;
    args.grad_hidden = grad_hidden.view(), args.grad_weight = grad_weight.view(), args.grad_bias = grad_bias.view();
    run(cpu::kernels().linear_cross_entropy_backward, args);
    for (std::int64_t i = 0; i < c_.rows; ++i) {
      for (std::int64_t k = 0; k < c_.width; ++k) {
        double want = 0.0, size = 0.0;
        for (std::int64_t j = 0; j < c_.vocabulary; ++j) {
          want += rows_[i].gradient[j] * weight_.at({j, k});
          size += std::fabs(rows_[i].size[j] * weight_.at({j, k}));
        }
        check_close(grad_hidden.at({i, k}), want, allowed<T>(want, size, 64.0),
                    "grad_hidden %s (%d, %d) of vocabulary %d", Format<T>::name, int(i), int(k), int(c_.vocabulary));
      }
    }
    for (std::int64_t j = 0; j < c_.vocabulary; ++j) {
      double bias = 0.0, bias_size = 0.0;
      for (std::int64_t i = 0; i < c_.rows; ++i) bias += rows_[i].gradient[j], bias_size += rows_[i].size[j];
      if (c_.bias) check_close(grad_bias.at({j}), bias, allowed<T>(bias, bias_size, 64.0), "grad_bias %d", int(j));
      for (std::int64_t k = 0; k < c_.width; ++k) {
        double want = 0.0, size = 0.0;
        for (std::int64_t i = 0; i < c_.rows; ++i) {
          want += rows_[i].gradient[j] * hidden_.at({i, k});
          size += std::fabs(rows_[i].size[j] * hidden_.at({i, k}));
        }
        check_close(grad_weight.at({j, k}), want, allowed<T>(want, size, 64.0), "grad_weight %s (%d, %d) of %d rows",
                    Format<T>::name, int(j), int(k), int(c_.rows));
      }
    }
  }

  const Case c_;
  Random random_;
  CrossEntropyOptions options_;
  Tensor hidden_, weight_, bias_, grad_;
  std::vector<std::int64_t> target_;
  std::vector<float> loss_, lse_;
  std::vector<Row> rows_;
};

template <class T>
void check_cases() {
  CrossEntropyTest<T>({1, 1, 1, false, 0.0f, 0.0f, 0.0f, 1}).run_both();
  CrossEntropyTest<T>({5, 600, 100, true, 0.1f, 0.01f, 0.0f, 1}).run_both();  // few rows
  CrossEntropyTest<T>({5, 17, 100, true, 0.1f, 0.01f, 0.0f, 1}).run_both();   // few, but of a short k
  CrossEntropyTest<T>({16, 32, 300, true, 0.1f, 0.01f, 0.0f, 1}).run_both();  // the operands swapped
  CrossEntropyTest<T>({37, 20, 67, true, 0.0f, 0.0f, 3.0f, 1}).run_both();
  CrossEntropyTest<T>({37, 20, 1100, true, 0.0f, 0.0f, 3.0f, 1}).run_both();
  CrossEntropyTest<T>({33, 9, 300, false, 0.2f, 0.1f, 2.0f, 3}).run_both();
}

}  // namespace

void test_linear_cross_entropy() {
  check_cases<float>();
  check_cases<bfloat16>();
  check_cases<float16>();
  // 16 MB of gradient hold 512 columns of these rows: three passes.
  CrossEntropyTest<float>({8192, 2, 1030, true, 0.0f, 0.0f, 0.0f, 1}).run_both();
}

}  // namespace bigmodel::test
