// csrc/cpu/isa/vec_math.h against double, in units in the last place of the right answer.
#include "check.h"
#include "cpu/isa/vec_math.h"
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

template <class Ours, class Truth>
void check_ulps(const char* name, Ours ours, Truth truth, float low, float high, double bound) {
  double worst = 0.0;
  float where = 0.0f, x[lanes], got[lanes];
  int filled = 0;
  const auto compare = [&]() {
    store(got, ours(load(x)));
    for (int i = 0; i < filled; ++i) {
      const double want = truth(static_cast<double>(x[i]));
      int exponent;
      std::frexp(want, &exponent);
      const double unit = std::ldexp(1.0, exponent - 24 < -149 ? -149 : exponent - 24);
      const double error = got[i] == want ? 0.0 : std::fabs(got[i] - want) / unit;
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
  check(worst <= bound, "%s is off by %.3f units in the last place at %a, allowed %.1f", name, worst, where, bound);
}

void check_special() {
  const float nan = NAN, inf = INFINITY;
  check(std::isnan(first(exp2(set1(nan)))) && std::isnan(first(exp(set1(nan)))) && std::isnan(first(tanh(set1(nan)))) &&
            std::isnan(first(erf(set1(nan)))) && std::isnan(first(log(set1(nan)))),
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
  check(first(erf(set1(inf))) == 1.0f && first(erf(set1(-inf))) == -1.0f, "erf");
  check(std::signbit(first(tanh(set1(-0.0f)))) && std::signbit(first(erf(set1(-0.0f)))), "tanh and erf of -0");
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
  check_ulps("erf", [](F32 x) { return erf(x); }, [](double x) { return std::erf(x); }, -inf, inf, 2.5);
  check_ulps(
      "log", [](F32 x) { return log(x); }, [](double x) { return std::log(x); }, 0x1p-126f, 0x1.fffffep127f, 1.5);
  check_special();
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
