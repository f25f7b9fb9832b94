// attention_varlen: every sequence gives the bits of attention on its own tensors; its mask's gradient and its sinks'
// are the sums of theirs.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "tensors.h"

namespace bigmodel::test {

namespace {

struct Lengths {
  std::int64_t queries, keys;
};

struct Case {
  std::vector<Lengths> sequences;
  std::int64_t heads, kv_heads, head_dim, value_dim;
  Causal causal;
  bool mask;  // additive, the same for all sequences
};

template <class T>
class VarlenTest {
 public:
  explicit VarlenTest(const Case& c) : c_(c), random_(5) {
    for (const Lengths& each : c.sequences) {
      query_starts_.push_back(query_starts_.back() + each.queries);
      key_starts_.push_back(key_starts_.back() + each.keys);
      most_.queries = std::max(most_.queries, each.queries), most_.keys = std::max(most_.keys, each.keys);
    }
    order_.resize(c.sequences.size());
    std::iota(order_.rbegin(), order_.rend(), 0);
    const std::int64_t queries = query_starts_.back(), keys = key_starts_.back();
    query_ = filled(c.heads, queries, c.head_dim), key_ = filled(c.kv_heads, keys, c.head_dim);
    value_ = filled(c.kv_heads, keys, c.value_dim), grad_output_ = filled(c.heads, queries, c.value_dim);
    slopes_ = Tensor::make(0.0f, {count(), c.heads});
    sinks_ = Tensor::make(0.0f, {c.heads});
    slopes_.fill([&] { return 0.1; });
    sinks_.fill_normal(random_);
    if (c.mask) {
      mask_ = Tensor::make(0.0f, {1, c.heads, most_.queries, most_.keys});
      mask_.fill_normal(random_);
    }
  }

  void run_all() {
    Results together(*this, query_starts_.back(), key_starts_.back(), most_);
    AttentionVarlenForwardArgs forward{together.forward(packed()), sequences(), nullptr};
    AttentionVarlenBackwardArgs backward{together.backward(packed()), sequences(), nullptr};
    run(cpu::kernels().attention_varlen_forward, forward);
    run(cpu::kernels().attention_varlen_backward, backward);
    std::vector<double> mask_sums(together.grad_mask.present() ? c_.heads * most_.queries * most_.keys : 0);
    std::vector<double> sink_sums(c_.heads);
    for (std::int64_t s = 0; s < count(); ++s) {
      const Lengths lengths = c_.sequences[s];
      if (lengths.queries == 0 || lengths.keys == 0) continue;
      Results alone(*this, lengths.queries, lengths.keys, lengths);
      run(cpu::kernels().attention_forward, alone.forward(inputs_of(s)));
      run(cpu::kernels().attention_backward,
          alone.backward(inputs_of(s), view_of(grad_output_, query_starts_[s], lengths.queries)));
      compare(alone, together, s, lengths, mask_sums, sink_sums);
    }
    for (std::int64_t h = 0; h < c_.heads; ++h) {
      check_close(together.grad_sinks.at({h}), sink_sums[h], 1e-3 * (1.0 + std::fabs(sink_sums[h])), "grad_sinks %d",
                  int(h));
      for (std::int64_t i = 0; together.grad_mask.present() && i < most_.queries; ++i)
        for (std::int64_t j = 0; j < most_.keys; ++j) {
          const double want = mask_sums[(h * most_.queries + i) * most_.keys + j];
          check_close(together.grad_mask.at({0, h, i, j}), want, 1e-5 * (1.0 + std::fabs(want)), "grad_mask (%d, %d)",
                      int(i), int(j));
        }
    }
  }

 private:
  // What a call writes.
  struct Results {
    const VarlenTest& test;
    Tensor output, lse, grad_query, grad_key, grad_value, grad_mask, grad_sinks;

    Results(const VarlenTest& of, std::int64_t queries, std::int64_t keys, Lengths mask) : test(of) {
      const Case& c = of.c_;
      output = Tensor::make(T{}, {1, c.heads, queries, c.value_dim});
      lse = Tensor::make(0.0f, {1, c.heads, queries});
      grad_query = Tensor::make(T{}, {1, c.heads, queries, c.head_dim});
      grad_key = Tensor::make(T{}, {1, c.kv_heads, keys, c.head_dim});
      grad_value = Tensor::make(T{}, {1, c.kv_heads, keys, c.value_dim});
      if (c.mask) grad_mask = Tensor::make(0.0f, {1, c.heads, mask.queries, mask.keys});
      grad_sinks = Tensor::make(0.0f, {c.heads});
    }
    AttentionForwardArgs forward(const AttentionInputs& inputs) const {
      return {inputs, output.view(), lse.view(), nullptr};
    }
    AttentionBackwardArgs backward(const AttentionInputs& inputs, TensorView grad = {}) const {
      AttentionBackwardArgs args;
      args.inputs = inputs;
      args.output = output.view(), args.lse = lse.view();
      args.grad_output = grad.data ? grad : test.grad_output_.view();
      args.grad_query = grad_query.view(), args.grad_key = grad_key.view(), args.grad_value = grad_value.view();
      args.grad_mask = grad_mask.view(), args.grad_sinks = grad_sinks.view();
      return args;
    }
  };

  std::int64_t count() const { return std::int64_t(c_.sequences.size()); }
  PackedSequences sequences() const { return {count(), query_starts_.data(), key_starts_.data(), order_.data()}; }

  Tensor filled(std::int64_t heads, std::int64_t tokens, std::int64_t features) {
    Tensor tensor = Tensor::make(T{}, {1, heads, tokens, features});
    tensor.fill_normal(random_);
    return tensor;
  }

  AttentionInputs packed() const {
    AttentionInputs inputs;
    inputs.query = query_.view(), inputs.key = key_.view(), inputs.value = value_.view();
    inputs.mask = broadcast(mask_, {count(), c_.heads, most_.queries, most_.keys});
    inputs.alibi_slopes = slopes_.view(), inputs.sinks = sinks_.view();
    inputs.options.causal = c_.causal;
    inputs.options.scale = float(1.0 / std::sqrt(double(c_.head_dim)));
    return inputs;
  }

  static TensorView view_of(const Tensor& tensor, std::int64_t first, std::int64_t tokens) {
    TensorView view = tensor.view();
    view.data = static_cast<T*>(view.data) + first * view.stride[2];
    view.size[2] = tokens;
    return view;
  }

  AttentionInputs inputs_of(std::int64_t s) const {
    AttentionInputs inputs = packed();
    const Lengths lengths = c_.sequences[s];
    inputs.query = view_of(query_, query_starts_[s], lengths.queries);
    inputs.key = view_of(key_, key_starts_[s], lengths.keys);
    inputs.value = view_of(value_, key_starts_[s], lengths.keys);
    inputs.mask.size[0] = 1, inputs.mask.size[2] = lengths.queries, inputs.mask.size[3] = lengths.keys;
    inputs.alibi_slopes.size[0] = 1;
    return inputs;
  }

  // The same bits; but targets that multiply bfloat16 leave a call of few queries alone in fp32.
  static double bound(double want) { return sizeof(T) == 4 ? 0.0 : 4.0 * Format<T>::epsilon * (1.0 + std::fabs(want)); }

  void compare(const Results& alone, const Results& together, std::int64_t s, Lengths lengths,
               std::vector<double>& mask_sums, std::vector<double>& sink_sums) const {
    const auto same = [&](const Tensor& one, const Tensor& all, std::int64_t heads, std::int64_t first,
                          std::int64_t tokens, std::int64_t features, const char* name) {
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t i = 0; i < tokens; ++i)
          for (std::int64_t e = 0; e < features; ++e)
            check_close(all.at({0, h, first + i, e}), one.at({0, h, i, e}), bound(one.at({0, h, i, e})),
                        "%s %s (%d, %d, %d) of sequence %d", Format<T>::name, name, int(h), int(i), int(e), int(s));
    };
    same(alone.output, together.output, c_.heads, query_starts_[s], lengths.queries, c_.value_dim, "output");
    same(alone.grad_query, together.grad_query, c_.heads, query_starts_[s], lengths.queries, c_.head_dim, "grad_query");
    same(alone.grad_key, together.grad_key, c_.kv_heads, key_starts_[s], lengths.keys, c_.head_dim, "grad_key");
    same(alone.grad_value, together.grad_value, c_.kv_heads, key_starts_[s], lengths.keys, c_.value_dim, "grad_value");
    for (std::int64_t h = 0; h < c_.heads; ++h) {
      sink_sums[h] += alone.grad_sinks.at({h});
      for (std::int64_t i = 0; i < lengths.queries; ++i) {
        check_close(together.lse.at({0, h, query_starts_[s] + i}), alone.lse.at({0, h, i}),
                    bound(alone.lse.at({0, h, i})), "lse %d", int(i));
        for (std::int64_t j = 0; c_.mask && j < lengths.keys; ++j)
          mask_sums[(h * most_.queries + i) * most_.keys + j] += alone.grad_mask.at({0, h, i, j});
      }
    }
  }

  const Case c_;
  Random random_;
  Lengths most_ = {0, 0};
  std::vector<std::int64_t> query_starts_ = {0}, key_starts_ = {0}, order_;
  Tensor query_, key_, value_, grad_output_, mask_, slopes_, sinks_;
};

template <class T>
void check_cases() {
  VarlenTest<T>({{{5, 5}, {70, 70}, {0, 3}, {4, 0}, {130, 20}}, 4, 2, 24, 17, Causal::none, true}).run_all();
  VarlenTest<T>({{{33, 90}, {1, 1}, {40, 40}}, 2, 1, 40, 8, Causal::bottom_right, false}).run_all();
}

}  // namespace

void test_attention_varlen() {
  check_cases<float>();
  check_cases<bfloat16>();
  check_cases<float16>();
  // Long enough to split keys and chunks over threads.
  VarlenTest<float>({{{20, 1100}, {3, 3}, {300, 400}}, 1, 1, 8, 8, Causal::top_left, false}).run_all();
}

}  // namespace bigmodel::test
