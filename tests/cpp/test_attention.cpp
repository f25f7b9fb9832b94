// attention and attention_weights, forward and backward, with every option that changes a score.
#include <algorithm>

#include "activations.h"
#include "dropout.h"
#include "tensors.h"

namespace bigmodel::test {

namespace {

enum class Mask { none, boolean, additive };

struct Case {
  std::int64_t batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim;
  Causal causal = Causal::none;
  std::int64_t left = -1, right = -1;
  double softcap = 0.0, dropout = 0.0;
  Mask mask = Mask::none;
  bool alibi = false, sinks = false;
};

template <class T>
class AttentionTest {
 public:
  explicit AttentionTest(const Case& c) : c_(c), random_(23) {
    query_ = filled({c.batch, c.heads, c.q_len, c.head_dim});
    key_ = filled({c.batch, c.kv_heads, c.kv_len, c.head_dim});
    value_ = filled({c.batch, c.kv_heads, c.kv_len, c.value_dim});
    output_ = filled({c.batch, c.heads, c.q_len, c.value_dim});
    grad_output_ = filled({c.batch, c.heads, c.q_len, c.value_dim});
    lse_ = Tensor::make(0.0f, {c.batch, c.heads, c.q_len});
    if (c.mask == Mask::additive) mask_ = filled({c.batch, 1, c.q_len, c.kv_len});
    if (c.mask == Mask::boolean) {
      mask_ = Tensor::make_boolean({c.batch, 1, c.q_len, c.kv_len});
      mask_.fill([&] { return random_.uniform(0, 1) < 0.6 ? 1.0 : 0.0; });
      for (std::int64_t j = 0; j < c.kv_len; ++j) mask_.set({0, 0, 0, j}, 0.0);  // a query that sees nothing
    }
    if (c.alibi) slopes_ = filled_float({c.batch, c.heads});
    if (c.sinks) sinks_ = filled_float({c.heads});
    inputs_.query = query_.view();
    inputs_.key = key_.view();
    inputs_.value = value_.view();
    inputs_.mask = broadcast(mask_, {c.batch, c.heads, c.q_len, c.kv_len});
    inputs_.alibi_slopes = slopes_.view();
    inputs_.sinks = sinks_.view();
    inputs_.options = {c.causal, scale(), c.left, c.right, float(c.softcap), {c.dropout, 77}};
  }

  void run_all() {
    run(cpu::kernels().attention_forward, AttentionForwardArgs{inputs_, output_.view(), lse_.view(), nullptr});
    check_forward();
    check_backward();
    check_weights();
  }

 private:
  Tensor filled(std::initializer_list<std::int64_t> sizes) {
    Tensor tensor = Tensor::make(T{}, sizes);
    tensor.fill_normal(random_);
    return tensor;
  }
  Tensor filled_float(std::initializer_list<std::int64_t> sizes) {
    Tensor tensor = Tensor::make(0.0f, sizes);
    tensor.fill([&] { return 0.1 + 0.2 * std::fabs(random_.normal()); });
    return tensor;
  }
  float scale() const { return float(1.0 / std::sqrt(double(c_.head_dim))); }
  std::int64_t kv(std::int64_t h) const { return h / (c_.heads / c_.kv_heads); }

  // One row of the naive pass: probabilities before dropout, what the softcap multiplies gradients by, and the total
  // size of the terms of each exponent s - lse.
  struct Row {
    double lse = -INFINITY;
    std::vector<double> p, slope, dropped, exponent_size;
  };
  Row row(std::int64_t b, std::int64_t h, std::int64_t i) const {
    Row r{-INFINITY, std::vector<double>(c_.kv_len), std::vector<double>(c_.kv_len, 1.0),
          std::vector<double>(c_.kv_len), std::vector<double>(c_.kv_len)};
    const std::int64_t d = c_.causal == Causal::top_left ? i : i + c_.kv_len - c_.q_len;
    double total = c_.sinks ? std::exp(sinks_.at({h})) : 0.0;
    for (std::int64_t j = 0; j < c_.kv_len; ++j) {
      Sum product;
      for (std::int64_t e = 0; e < c_.head_dim; ++e) product.add(query_.at({b, h, i, e}) * key_.at({b, kv(h), j, e}));
      double s = product.value * scale();
      r.exponent_size[j] = product.size * scale();
      if (c_.softcap > 0.0) {
        const double t = std::tanh(s / c_.softcap);
        s = c_.softcap * t;
        r.slope[j] = 1.0 - t * t;
      }
      if (c_.alibi) s -= slopes_.at({b, h}) * std::fabs(double(d - j));
      if (c_.mask == Mask::additive) s += mask_.at({b, 0, i, j});
      const bool kept = (c_.causal == Causal::none || j <= d) && (c_.left < 0 || j >= d - c_.left) &&
                        (c_.right < 0 || j <= d + c_.right) &&
                        (c_.mask != Mask::boolean || mask_.at({b, 0, i, j}) != 0.0);
      r.p[j] = kept ? std::exp(s) : 0.0;
      total += r.p[j];
      r.dropped[j] = dropout_factor(inputs_.options.dropout, std::uint32_t(b), std::uint32_t(h), std::uint32_t(i),
                                    std::uint32_t(j));
    }
    if (total > 0.0) r.lse = std::log(total);
    for (double& p : r.p) p = total > 0.0 ? p / total : 0.0;
    for (double& size : r.exponent_size) size += total > 0.0 ? std::fabs(r.lse) : 0.0;
    return r;
  }

  template <class Body>
  void each_query(Body body) const {
    for (std::int64_t b = 0; b < c_.batch; ++b)
      for (std::int64_t h = 0; h < c_.heads; ++h)
        for (std::int64_t i = 0; i < c_.q_len; ++i) body(b, h, i);
  }

  void check_forward() const {
    each_query([&](std::int64_t b, std::int64_t h, std::int64_t i) {
      const Row r = row(b, h, i);
      check_close(lse_.at({b, h, i}), r.lse, (sizeof(T) == 4 ? 1e-5 : 1e-2) * (1.0 + std::fabs(r.lse)),
                  "lse of query %d", int(i));
      for (std::int64_t e = 0; e < c_.value_dim; ++e) {
        Sum sum;
        for (std::int64_t j = 0; j < c_.kv_len; ++j) sum.add(r.p[j] * r.dropped[j] * value_.at({b, kv(h), j, e}));
        check_close(output_.at({b, h, i, e}), sum.value, allowed<T>(sum.value, sum.size),
                    "attention %s output (%d, %d, %d, %d)", Format<T>::name, int(b), int(h), int(i), int(e));
      }
    });
  }

  // Gradients in double, with sizes of what was summed.
  struct Gradient {
    std::int64_t rows, columns;
    std::vector<Sum> sums;

    Sum& at(std::int64_t b, std::int64_t h, std::int64_t heads, std::int64_t i, std::int64_t e) {
      return sums[((b * heads + h) * rows + i) * columns + e];
    }
  };
  static Gradient zeros(std::int64_t outer, std::int64_t rows, std::int64_t columns) {
    return {rows, columns, std::vector<Sum>(outer * rows * columns)};
  }

  void compare(const Tensor& got, Gradient& want, std::int64_t heads, const char* name, double terms = 16.0) const {
    for (std::int64_t b = 0; b < c_.batch; ++b)
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t i = 0; i < want.rows; ++i)
          for (std::int64_t e = 0; e < want.columns; ++e) {
            const Sum sum = want.at(b, h, heads, i, e);
            check_close(got.at({b, h, i, e}), sum.value, allowed<T>(sum.value, sum.size, terms),
                        "attention %s %s (%d, %d, %d, %d)", Format<T>::name, name, int(b), int(h), int(i), int(e));
          }
  }

  void check_backward() {
    Tensor grad_query = filled({c_.batch, c_.heads, c_.q_len, c_.head_dim}),
           grad_key = filled({c_.batch, c_.kv_heads, c_.kv_len, c_.head_dim}),
           grad_value = filled({c_.batch, c_.kv_heads, c_.kv_len, c_.value_dim}), grad_mask, grad_sinks;
    if (c_.mask == Mask::additive) grad_mask = filled({c_.batch, 1, c_.q_len, c_.kv_len});
    if (c_.sinks) grad_sinks = filled_float({c_.heads});
    AttentionBackwardArgs args;
    args.inputs = inputs_;
    args.output = output_.view();
    args.lse = lse_.view();
    args.grad_output = grad_output_.view();
    args.grad_query = grad_query.view();
    args.grad_key = grad_key.view();
    args.grad_value = grad_value.view();
    args.grad_mask = grad_mask.view();
    args.grad_sinks = grad_sinks.view();
    run(cpu::kernels().attention_backward, args);

    Gradient dq = zeros(c_.batch * c_.heads, c_.q_len, c_.head_dim),
             dk = zeros(c_.batch * c_.kv_heads, c_.kv_len, c_.head_dim),
             dv = zeros(c_.batch * c_.kv_heads, c_.kv_len, c_.value_dim), dm = zeros(c_.batch, c_.q_len, c_.kv_len);
    std::vector<Sum> ds(c_.heads);
    each_query([&](std::int64_t b, std::int64_t h, std::int64_t i) {
      const Row r = row(b, h, i);
      std::vector<double> dp(c_.kv_len);
      double delta = 0.0, delta_size = 0.0;
      for (std::int64_t j = 0; j < c_.kv_len; ++j) {
        for (std::int64_t e = 0; e < c_.value_dim; ++e) {
          dp[j] += grad_output_.at({b, h, i, e}) * value_.at({b, kv(h), j, e}) * r.dropped[j];
          delta_size += r.p[j] * std::fabs(grad_output_.at({b, h, i, e}) * value_.at({b, kv(h), j, e}) * r.dropped[j]);
          dv.at(b, kv(h), c_.kv_heads, j, e).add(r.p[j] * r.dropped[j] * grad_output_.at({b, h, i, e}));
        }
        delta += r.p[j] * dp[j];
      }
      if (c_.sinks)
        ds[h].value -= std::exp(sinks_.at({h}) - r.lse) * delta,
            ds[h].size += std::exp(sinks_.at({h}) - r.lse) * delta_size;
      for (std::int64_t j = 0; j < c_.kv_len; ++j) {
        const double score = r.p[j] * (dp[j] - delta), size = r.p[j] * (std::fabs(dp[j]) + delta_size);
        dm.at(b, 0, 1, i, j).value += score;
        dm.at(b, 0, 1, i, j).size += size;
        for (std::int64_t e = 0; e < c_.head_dim; ++e) {
          const double factor = r.slope[j] * scale(), q = query_.at({b, h, i, e}), k = key_.at({b, kv(h), j, e});
          dq.at(b, h, c_.heads, i, e).value += score * factor * k;
          dq.at(b, h, c_.heads, i, e).size += size * factor * std::fabs(k);
          dk.at(b, kv(h), c_.kv_heads, j, e).value += score * factor * q;
          dk.at(b, kv(h), c_.kv_heads, j, e).size += size * factor * std::fabs(q);
        }
      }
    });
    compare(grad_query, dq, c_.heads, "grad_query");
    compare(grad_key, dk, c_.kv_heads, "grad_key");
    compare(grad_value, dv, c_.kv_heads, "grad_value");
    if (grad_mask.present()) compare(grad_mask, dm, 1, "grad_mask");
    for (std::int64_t h = 0; h < c_.heads && c_.sinks; ++h) {
      check_close(grad_sinks.at({h}), ds[h].value, allowed<T>(ds[h].value, ds[h].size, 16.0), "grad_sinks %d", int(h));
    }
  }

  // The weights, or their mean over the heads, in double.
  Gradient expected_weights(bool average) const {
    Gradient want = zeros(c_.batch * (average ? 1 : c_.heads), c_.q_len, c_.kv_len);
    each_query([&](std::int64_t b, std::int64_t h, std::int64_t i) {
      const Row r = row(b, h, i);
      for (std::int64_t j = 0; j < c_.kv_len; ++j) {
        // A weight is e^(s - lse): what is lost in the exponent, whose terms are larger than it, is lost of the
        // weight.
        const double weight = r.p[j] * r.dropped[j] / (average ? double(c_.heads) : 1.0);
        Sum& sum = average ? want.at(b, 0, 1, i, j) : want.at(b, h, c_.heads, i, j);
        sum.value += weight;
        sum.size += weight * (1.0 + r.exponent_size[j]);
      }
    });
    return want;
  }

  void check_weights() {
    for (const bool average : {false, true}) {
      const char* name = average ? "mean weights" : "weights";
      Gradient want = expected_weights(average);
      Tensor weights = filled({c_.batch, average ? 1 : c_.heads, c_.q_len, c_.kv_len});
      AttentionWeightsForwardArgs args;
      args.inputs = inputs_;
      args.inputs.value = {};
      args.lse = lse_.view();
      args.weights = weights.view();
      args.average_heads = average;
      run(cpu::kernels().attention_weights_forward, args);
      compare(weights, want, average ? 1 : c_.heads, name, 4.0);

      weights = filled({c_.batch, average ? 1 : c_.heads, c_.q_len, c_.kv_len});
      output_ = filled({c_.batch, c_.heads, c_.q_len, c_.value_dim});
      lse_.fill([] { return 77.0; });
      run(cpu::kernels().attention_with_weights,
          AttentionWithWeightsArgs{inputs_, output_.view(), lse_.view(), weights.view(), average});
      compare(weights, want, average ? 1 : c_.heads, name, 4.0);
      check_forward();
    }
  }

  const Case c_;
  Random random_;
  Tensor query_, key_, value_, output_, lse_, grad_output_, mask_, slopes_, sinks_;
  AttentionInputs inputs_;
};

// Few heads and few rows still give every thread something to do.
template <class Kernel, class Args>
void check_threads(const Kernel& kernel, const Args& args, const char* what) {
  most_workers = 1;
  run(kernel, args);
  check(most_workers == max_workers(), "%s asks for %d of %d threads", what, most_workers, max_workers());
}

void check_threads_of_one_head(std::int64_t q_len, std::int64_t kv_len) {
  Random random(5);
  const auto filled = [&](std::initializer_list<std::int64_t> sizes) {
    Tensor tensor = Tensor::make(0.0f, sizes);
    tensor.fill_normal(random);
    return tensor;
  };
  const Tensor query = filled({1, 1, q_len, 64}), key = filled({1, 1, kv_len, 64}), value = filled({1, 1, kv_len, 64});
  const Tensor output = filled({1, 1, q_len, 64}), lse = filled({1, 1, q_len}), grad_query = filled({1, 1, q_len, 64});
  const Tensor grad_key = filled({1, 1, kv_len, 64}), grad_value = filled({1, 1, kv_len, 64});
  AttentionInputs inputs;
  inputs.query = query.view(), inputs.key = key.view(), inputs.value = value.view();
  inputs.options.scale = 0.125f;
  check_threads(cpu::kernels().attention_forward, AttentionForwardArgs{inputs, output.view(), lse.view(), nullptr},
                "attention of one head");
  AttentionBackwardArgs backward;
  backward.inputs = inputs;
  backward.output = output.view(), backward.lse = lse.view(), backward.grad_output = output.view();
  backward.grad_query = grad_query.view(), backward.grad_key = grad_key.view(), backward.grad_value = grad_value.view();
  check_threads(cpu::kernels().attention_backward, backward, "attention_backward of one head");
}

template <class T>
void check_cases() {
  Case plain{2, 4, 2, 9, 13, 16, 16};
  std::vector<Case> cases(11, plain);
  cases[1] = {1, 1, 1, 1, 1, 1, 1};
  cases[2] = {1, 2, 1, 70, 67, 33, 20};
  cases[2].causal = Causal::top_left;
  cases[3].causal = Causal::bottom_right;
  cases[4].mask = Mask::boolean;
  cases[5].mask = Mask::additive;
  cases[6].left = 3, cases[6].right = 2;
  cases[7].softcap = 2.0;
  cases[8].alibi = true, cases[8].causal = Causal::bottom_right;
  cases[9].sinks = true, cases[9].mask = Mask::boolean;
  cases[10].dropout = 0.3, cases[10].kv_len = 37;
  cases.push_back({1, 1, 1, 130, 150, 64, 64});
  cases.push_back({1, 4, 1, 1, 40, 24, 24});
  for (const Case& c : cases) AttentionTest<T>(c).run_all();
}

}  // namespace

void test_attention() {
  check_cases<float>();
  check_cases<bfloat16>();
  check_cases<float16>();
  check_threads_of_one_head(256, 256);
  check_threads_of_one_head(1, 4096);
  check_threads_of_one_head(3, 2048);
}

}  // namespace bigmodel::test
