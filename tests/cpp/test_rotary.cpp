// rotary: every dtype, half-split and interleaved, forth and back, partial, with positions, and in place.
#include "tensors.h"

namespace bigmodel::test {

namespace {

struct Case {
  std::int64_t batch, heads, kv_heads, length, head_dim, pairs;
  bool interleaved, inverse, by_position, in_place;
  std::int64_t gap;
};

template <class T, class W>
void check_case(const Case& c) {
  Random random(c.length * 7 + c.pairs);
  const std::int64_t rows = c.length + 3;
  const auto filled = [&](auto type, std::initializer_list<std::int64_t> sizes, std::int64_t gap) {
    Tensor tensor = Tensor::make(type, sizes, gap);
    tensor.fill_normal(random);
    return tensor;
  };
  const Tensor cos = filled(W{}, {1, rows, c.pairs}, c.gap), sin = filled(W{}, {1, rows, c.pairs}, c.gap);
  std::vector<std::int64_t> positions;
  for (std::int64_t i = 0; i < c.batch * c.length; ++i) positions.push_back((i * 5 + 2) % rows);
  Tensor inputs[2], before[2], outputs[2];
  for (int side = 0; side < 2; ++side) {
    const std::int64_t heads = side == 0 ? c.heads : c.kv_heads;
    inputs[side] = filled(T{}, {c.batch, heads, c.length, c.head_dim}, c.gap);
    before[side] = Tensor::make(T{}, {c.batch, heads, c.length, c.head_dim});
    outputs[side] = Tensor::make(T{}, {c.batch, heads, c.length, c.head_dim});
    for (std::int64_t b = 0; b < c.batch; ++b)
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t t = 0; t < c.length; ++t)
          for (std::int64_t j = 0; j < c.head_dim; ++j) before[side].set({b, h, t, j}, inputs[side].at({b, h, t, j}));
  }
  RotaryArgs args;
  args.query = inputs[0].view();
  args.key = inputs[1].view();
  args.cos = cos.view();
  args.sin = sin.view();
  args.cos.size[0] = args.sin.size[0] = c.batch;
  args.cos.stride[0] = args.sin.stride[0] = 0;
  if (c.by_position) args.positions = positions.data(), args.positions_batch_stride = c.length;
  args.interleaved = c.interleaved;
  args.inverse = c.inverse;
  args.query_output = c.in_place ? args.query : outputs[0].view();
  args.key_output = c.in_place ? args.key : outputs[1].view();
  run(cpu::kernels().rotary, args);

  for (int side = 0; side < 2; ++side) {
    const Tensor& got = c.in_place ? inputs[side] : outputs[side];
    for (std::int64_t b = 0; b < c.batch; ++b) {
      for (std::int64_t h = 0; h < (side == 0 ? c.heads : c.kv_heads); ++h) {
        for (std::int64_t t = 0; t < c.length; ++t) {
          const std::int64_t row = c.by_position ? positions[b * c.length + t] : t;
          for (std::int64_t j = 0; j < c.head_dim; ++j) {
            double want = before[side].at({b, h, t, j}), size = std::fabs(want);
            if (j < 2 * c.pairs) {
              const std::int64_t pair = c.interleaved ? j / 2 : j % c.pairs;
              const bool second = c.interleaved ? j % 2 == 1 : j >= c.pairs;
              const std::int64_t step = c.interleaved ? 1 : c.pairs;
              const double other = before[side].at({b, h, t, second ? j - step : j + step});
              const double turn = sin.at({0, row, pair}) * (c.inverse ? -1.0 : 1.0) * (second ? 1.0 : -1.0);
              want = before[side].at({b, h, t, j}) * cos.at({0, row, pair}) + other * turn;
              size = std::fabs(before[side].at({b, h, t, j}) * cos.at({0, row, pair})) + std::fabs(other * turn);
            }
            check_close(got.at({b, h, t, j}), want, Format<T>::epsilon * std::fabs(want) + 0x1p-22 * size + 1e-7,
                        "rotary %s (%d, %d, %d, %d) of %d, %d pairs", Format<T>::name, int(b), int(h), int(t), int(j),
                        int(c.head_dim), int(c.pairs));
          }
        }
      }
    }
  }
}

template <class T, class W>
void check_cases() {
  for (const bool interleaved : {false, true}) {
    for (const bool in_place : {false, true}) {
      check_case<T, W>({1, 1, 1, 1, 2, 1, interleaved, false, false, in_place, 1});
      check_case<T, W>({2, 3, 1, 19, 37, 11, interleaved, true, true, in_place, 1});
      check_case<T, W>({1, 2, 2, 17, 64, 32, interleaved, false, true, in_place, 1});
      check_case<T, W>({1, 1, 1, 3, 300, 149, interleaved, false, false, in_place, 1});  // several blocks of pairs
      check_case<T, W>({2, 1, 1, 5, 24, 10, interleaved, true, false, in_place, 3});
    }
  }
}

}  // namespace

void test_rotary() {
  check_cases<float, float>();
  check_cases<bfloat16, bfloat16>();
  check_cases<bfloat16, float>();
  check_cases<float16, float16>();
}

}  // namespace bigmodel::test
