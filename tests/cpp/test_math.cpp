// csrc/cpu/isa/vec_math.h against double, in units in the last place of the right answer (or of 1).
#include "check.h"
#include "cpu/activation.h"
#include "numbers.h"
#include "vocabulary.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

using namespace bigmodel::test;

namespace {

template <int degree>
F32 each_exp2(F32 x) {
  F32 each[] = {x, x};
  exp2_each<degree>(each);
  return each[1];
}

float first(F32 a) {
  float values[lanes];
  store(values, a);
  return values[0];
}

// Every so many floats between low and high: each binade, both signs. Emulated builds take fewer.
#if !defined(BIGMODEL_MATH_STEP)
#define BIGMODEL_MATH_STEP 509
#endif

double unit_in_the_last_place(double of) {
  int exponent;
  std::frexp(of, &exponent);
  return std::ldexp(1.0, exponent - 24 < -149 ? -149 : exponent - 24);
}

template <class Ours, class Truth, class Unit>
void check_error(const char* name, Ours ours, Truth truth, float low, float high, double bound, Unit unit) {
  double worst = 0.0;
  float where = 0.0f, x[lanes], got[lanes];
  int filled = 0;
  const auto compare = [&]() {
    store(got, ours(load(x)));
    for (int i = 0; i < filled; ++i) {
      const double want = truth(static_cast<double>(x[i]));
      const double error = got[i] == want ? 0.0 : std::fabs(got[i] - want) / unit(want);
      if (!(error <= worst)) {
        worst = error;
        where = x[i];
      }
    }
    filled = 0;
  };
  for (int i = 0; i < lanes; ++i) x[i] = 0.0f;
  for (std::uint64_t bits = 0; bits < std::uint64_t{1} << 32; bits += BIGMODEL_MATH_STEP) {
    x[filled] = float_of(static_cast<std::uint32_t>(bits));
    if (!(x[filled] >= low && x[filled] <= high)) continue;
    if (++filled == lanes) compare();
  }
  compare();
  check(worst <= bound, "%s is off by %.3f units at %a, allowed %.1f", name, worst, where, bound);
}

template <class Ours, class Truth>
void check_ulps(const char* name, Ours ours, Truth truth, float low, float high, double bound) {
  check_error(name, ours, truth, low, high, bound, unit_in_the_last_place);
}

void check_special() {
  const float nan = NAN, inf = INFINITY;
  check(std::isnan(first(exp2(set1(nan)))) && std::isnan(first(exp(set1(nan)))) && std::isnan(first(tanh(set1(nan)))) &&
            std::isnan(first(normal_distribution(set1(nan)))) &&
            std::isnan(first(rough_normal_distribution(set1(nan)))) && std::isnan(first(log(set1(nan)))),
        "NaN in, NaN out");
  const float odd_nan = float_of(0x7fc00001u);  // whose low bits must not be shifted into a number
  check(std::isnan(first(exp2(set1(odd_nan)))) && std::isnan(first(exp(set1(odd_nan)))), "NaN with a payload");
  check(first(exp2(set1(-inf))) == 0.0f && first(exp2(set1(inf))) == inf && first(exp2(set1(0.0f))) == 1.0f, "exp2");
  check(first(exp2(set1(-127.0f))) == 0.0f && first(exp2(set1(-3.0e38f))) == 0.0f, "exp2 far below");
  check(first(each_exp2<4>(set1(-inf))) == 0.0f && first(each_exp2<5>(set1(-3.0e38f))) == 0.0f, "exp2_each far below");
  check(first(each_exp2<4>(set1(0.0f))) == 1.0f && first(each_exp2<5>(set1(0.0f))) == 1.0f, "exp2_each of 0");
  check(first(exp(set1(-inf))) == 0.0f && first(exp(set1(inf))) == inf && first(exp(set1(0.0f))) == 1.0f, "exp");
  check(first(exp(set1(88.73f))) == inf && first(exp(set1(-87.4f))) == 0.0f, "exp past its range");
  check(first(tanh(set1(inf))) == 1.0f && first(tanh(set1(-inf))) == -1.0f, "tanh");
  check(std::signbit(first(tanh(set1(-0.0f)))), "tanh of -0");
  check(first(rough_normal_distribution(set1(-inf))) == 0.0f && first(rough_normal_distribution(set1(inf))) == 1.0f,
        "rough_normal_distribution");
  check(first(normal_distribution(set1(-inf))) == 0.0f && first(normal_distribution(set1(0.0f))) == 0.5f,
        "normal_distribution");
  check(first(log(set1(inf))) == inf && first(log(set1(0.0f))) == -inf && first(log(set1(1.0f))) == 0.0f, "log");
  check(std::isnan(first(log(set1(-1.0f)))), "log of a negative number");
}

}  // namespace

void test_math() {
  const float inf = INFINITY;
  check_ulps("exp2", [](F32 x) { return exp2(x); }, [](double x) { return std::exp2(x); }, -126.0f, 127.499f, 1.5);
  check_ulps("exp2_each<5>", each_exp2<5>, [](double x) { return std::exp2(x); }, -126.0f, 126.999f, 2.5);
  check_ulps("exp2_each<4>", each_exp2<4>, [](double x) { return std::exp2(x); }, -126.0f, 126.999f, 48);
  check_ulps("exp", [](F32 x) { return exp(x); }, [](double x) { return std::exp(x); }, -87.33f, 88.72f, 1.5);
  check_ulps("tanh", [](F32 x) { return tanh(x); }, [](double x) { return std::tanh(x); }, -inf, inf, 2.5);
  const auto below = [](double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); };
  check_ulps("normal_distribution", normal_distribution, below, -1.0f, inf, 6);
  check_ulps("normal_distribution", normal_distribution, below, -5.5f, -1.0f, 60);
  check_error("normal_distribution", normal_distribution, below, -inf, -5.5f, 0.01, [](double) { return 0x1p-24; });
  check_error("rough_normal_distribution", rough_normal_distribution, below, -4.5f, inf, 0x1p-12,
              [](double value) { return value; });
  check_error("rough_normal_distribution", rough_normal_distribution, below, -6.0f, -4.5f, 0x1p-6,
              [](double value) { return value; });
  check_error("rough_normal_distribution", rough_normal_distribution, below, -inf, -6.0f, 0.02,
              [](double) { return 0x1p-24; });
  check_ulps(
      "log", [](F32 x) { return log(x); }, [](double x) { return std::log(x); }, 0x1p-126f, 0x1.fffffep127f, 1.5);
  check_special();
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
