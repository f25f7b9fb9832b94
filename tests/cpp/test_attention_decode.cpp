// attention_decode over caches of every dtype, contiguous and in pages, with all options and new rows.
#include "activations.h"
#include "tensors.h"

namespace bigmodel::test {

namespace {

struct Case {
  std::int64_t heads, kv_heads, q_len, head_dim, value_dim;
  std::vector<std::int64_t> lengths;
  std::int64_t page_size = 0;  // 0: contiguous
  bool adds = true, sinks = false;
  std::int64_t window = -1;
  double softcap = 0.0;
};

std::int64_t longest_of(const std::vector<std::int64_t>& lengths) {
  std::int64_t longest = 0;
  for (const std::int64_t length : lengths) longest = length > longest ? length : longest;
  return longest;
}

// Queries of T over a cache of DType `cache`.
template <class T>
class DecodeTest {
 public:
  DecodeTest(const Case& c, DType cache) : c_(c), cache_(cache), random_(31) {
    const std::int64_t batch = std::int64_t(c.lengths.size()), longest = longest_of(c.lengths) + added();
    slots_ = c.page_size > 0 ? c.page_size : longest;
    pages_ = c.page_size > 0 ? (longest + slots_ - 1) / slots_ : 1;
    query_ = filled({batch, c.heads, c.q_len, c.head_dim});
    key_ = make_cache(c.head_dim), value_ = make_cache(c.value_dim);
    if (cache == DType::int8) key_scales_ = make_scales(), value_scales_ = make_scales();
    if (c.adds) {
      new_key_ = filled({batch, c.kv_heads, c.q_len, c.head_dim});
      new_value_ = filled({batch, c.kv_heads, c.q_len, c.value_dim});
    }
    if (c.sinks) {
      sinks_ = Tensor::make(0.0f, {c.heads});
      sinks_.fill_normal(random_);
    }
    lengths_ = Tensor::make_int64({batch});
    for (std::int64_t b = 0; b < batch; ++b) lengths_.set({b}, double(c.lengths[b]));
    if (c.page_size > 0) {
      table_ = Tensor::make_int64({batch, pages_});
      for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t page = 0; page < pages_; ++page) table_.set({b, page}, double(page_of(b, page)));
    }
    output_ = filled({batch, c.heads, c.q_len, c.value_dim});
    lse_ = Tensor::make(0.0f, {batch, c.heads, c.q_len});
  }

  void run_all() {
    AttentionDecodeArgs args;
    args.query = query_.view(), args.key_cache = key_.view(), args.value_cache = value_.view();
    args.key_scales = key_scales_.view(), args.value_scales = value_scales_.view();
    args.cache_lengths = lengths_.view(), args.block_table = table_.view();
    args.new_key = new_key_.view(), args.new_value = new_value_.view(), args.sinks = sinks_.view();
    args.longest = longest_of(c_.lengths) + added();
    args.window_left = c_.window, args.scale = scale(), args.softcap = float(c_.softcap);
    args.output = output_.view(), args.lse = lse_.view();
    run(cpu::kernels().attention_decode, args);
    for (std::int64_t b = 0; b < std::int64_t(c_.lengths.size()); ++b) {
      if (c_.adds) check_new(b);
      for (std::int64_t h = 0; h < c_.heads; ++h)
        for (std::int64_t i = 0; i < c_.q_len; ++i) check_query(b, h, i);
    }
  }

 private:
  std::int64_t added() const { return c_.adds ? c_.q_len : 0; }
  float scale() const { return float(1.0 / std::sqrt(double(c_.head_dim))); }
  // Pages of the sequences in turn, the last first.
  std::int64_t page_of(std::int64_t b, std::int64_t page) const {
    if (c_.page_size == 0) return b;
    return (pages_ - 1 - page) * std::int64_t(c_.lengths.size()) + b;
  }
  Tensor filled(std::initializer_list<std::int64_t> sizes) {
    Tensor tensor = Tensor::make(T{}, sizes);
    tensor.fill_normal(random_);
    return tensor;
  }
  Tensor make_cache(std::int64_t features) {
    const std::initializer_list<std::int64_t> sizes = {std::int64_t(c_.lengths.size()) * pages_, c_.kv_heads, slots_,
                                                       features};
    if (cache_ == DType::int8) {
      Tensor tensor = Tensor::make_int8(sizes);
      tensor.fill([&] { return std::floor(random_.uniform(-127, 128)); });
      return tensor;
    }
    Tensor tensor = cache_ == DType::float32    ? Tensor::make(0.0f, sizes)
                    : cache_ == DType::bfloat16 ? Tensor::make(bfloat16{}, sizes)
                                                : Tensor::make(float16{}, sizes);
    tensor.fill_normal(random_);
    return tensor;
  }
  Tensor make_scales() {
    Tensor tensor = Tensor::make(0.0f, {std::int64_t(c_.lengths.size()) * pages_, c_.kv_heads, slots_});
    tensor.fill([&] { return random_.uniform(0.005, 0.02); });
    return tensor;
  }
  double entry(const Tensor& cache, const Tensor& scales, std::int64_t b, std::int64_t kv_head, std::int64_t j,
               std::int64_t e) const {
    const std::int64_t page = page_of(b, j / slots_);
    return cache.at({page, kv_head, j % slots_, e}) * scales.at({page, kv_head, j % slots_}, 1.0);
  }

  // What was written is the new rows, as near as the cache's dtype holds them.
  void check_new(std::int64_t b) const {
    const double step = cache_ == DType::float32 ? 0.0 : cache_ == DType::float16 ? 0x1p-11 : 0x1p-8;
    for (std::int64_t kv_head = 0; kv_head < c_.kv_heads; ++kv_head)
      for (std::int64_t i = 0; i < c_.q_len; ++i) {
        double largest = 0.0;
        for (std::int64_t e = 0; e < c_.head_dim; ++e)
          largest = std::fmax(largest, std::fabs(new_key_.at({b, kv_head, i, e})));
        for (std::int64_t e = 0; e < c_.head_dim; ++e) {
          const double want = new_key_.at({b, kv_head, i, e});
          const double bound = cache_ == DType::int8 ? largest * 0x1.01p-1 / 127 : step * std::fabs(want) + 0x1p-24;
          check_close(entry(key_, key_scales_, b, kv_head, c_.lengths[b] + i, e), want, bound, "new key %d", int(e));
        }
      }
  }

  void check_query(std::int64_t b, std::int64_t h, std::int64_t i) const {
    const std::int64_t total = c_.lengths[b] + added(), d = total - c_.q_len + i,
                       kv_head = h / (c_.heads / c_.kv_heads);
    std::vector<double> p(total > 0 ? total : 0);
    double sum = c_.sinks ? std::exp(sinks_.at({h})) : 0.0;
    for (std::int64_t j = 0; j < total; ++j) {
      if (j > d || (c_.window >= 0 && j < d - c_.window)) continue;
      double dot = 0.0;
      for (std::int64_t e = 0; e < c_.head_dim; ++e) {
        dot += query_.at({b, h, i, e}) * entry(key_, key_scales_, b, kv_head, j, e);
      }
      const double s = dot * scale();
      p[j] = std::exp(c_.softcap > 0.0 ? c_.softcap * std::tanh(s / c_.softcap) : s);
      sum += p[j];
    }
    const double lse = sum > 0.0 ? std::log(sum) : -INFINITY;
    // Of the exponents: rounding to T of terms that add up to a few, and of int8's integer products.
    const double loose = sizeof(T) == 4 ? 2e-5 : 2e-3;
    check_close(lse_.at({b, h, i}), lse, loose * (1.0 + std::fabs(sum > 0.0 ? lse : 0.0)), "lse of query %d", int(i));
    for (std::int64_t e = 0; e < c_.value_dim; ++e) {
      Sum want;
      for (std::int64_t j = 0; j < total; ++j) {
        if (p[j] > 0.0) want.add(p[j] / sum * entry(value_, value_scales_, b, kv_head, j, e));
      }
      check_close(output_.at({b, h, i, e}), want.value, Format<T>::epsilon * std::fabs(want.value) + loose * want.size,
                  "attention_decode %s output (%d, %d, %d, %d)", Format<T>::name, int(b), int(h), int(i), int(e));
    }
  }

  Case c_;
  DType cache_;
  Random random_;
  std::int64_t slots_, pages_;
  Tensor query_, key_, value_, key_scales_, value_scales_, new_key_, new_value_, sinks_, lengths_, table_, output_,
      lse_;
};

template <class T>
void check_cases() {
  std::vector<Case> cases = {
      {4, 2, 1, 32, 32, {0, 5, 70}},   {8, 2, 1, 64, 48, {33, 4}, 7},   {1, 1, 1, 1, 1, {3}},
      {6, 2, 3, 37, 45, {0, 40}},      {5, 1, 2, 24, 20, {19, 90}, 16}, {2, 2, 4, 16, 16, {0, 2}, 3, false},
      {4, 1, 1, 128, 128, {1300}, 64},
  };
  cases.push_back({6, 3, 2, 40, 33, {60, 7}, 5, true, true, 9, 2.0});
  for (const Case& c : cases) {
    for (const DType cache : {DType::float32, DType::bfloat16, DType::float16, DType::int8}) {
      DecodeTest<T>(c, cache).run_all();
    }
  }
}

}  // namespace

void test_attention_decode() {
  check_cases<float>();
  check_cases<bfloat16>();
  check_cases<float16>();
}

}  // namespace bigmodel::test
