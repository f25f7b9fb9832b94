// f32 and f64: add, sub, mul, fma, min, max, abs, neg, div. Other roundings than to nearest are in rounding.cpp.
#include <type_traits>

#include "arithmetic.h"
#include "floats.h"
#include "lanes.h"
#include "rounding.h"

namespace ptx {
namespace {

struct Add {
  template <class T>
  static T apply(T a, T b) {
    return a + b;
  }
};
struct Subtract {
  template <class T>
  static T apply(T a, T b) {
    return a - b;
  }
};
struct Multiply {
  template <class T>
  static T apply(T a, T b) {
    return a * b;
  }
};
struct Divide {
  template <class T>
  static T apply(T a, T b) {
    return a / b;
  }
};
// PTX's div.full: 2 ulp; exact here.
struct FusedMultiplyAdd {
  template <class T>
  static T apply(T a, T b, T c) {
    return std::fma(a, b, c);
  }
};
template <bool nan_wins, bool largest>
struct Extreme {
  template <class T>
  static T apply(T a, T b) {
    const bool zeros = a == b;  // -0 is below +0
    const bool first = largest ? (a > b || (zeros && std::signbit(b))) : (a < b || (zeros && std::signbit(a)));
    const T number = first ? a : b;
    const T one_is_nan = nan_wins ? std::numeric_limits<T>::quiet_NaN() : (a == a ? a : b);
    return a == a && b == b ? number : one_is_nan;
  }
};

template <class F, class T, bool ftz, bool sat>
struct Finished {
  static T before(T x) {
    if constexpr (ftz)
      return flushed(x);
    else
      return x;
  }
  static T after(T x) {
    if constexpr (sat) x = saturated(x);
    if constexpr (ftz) x = flushed(x);
    return canonical(x);
  }
  static T apply(T a, T b) { return after(F::apply(before(a), before(b))); }
  static T apply(T a, T b, T c) { return after(F::apply(before(a), before(b), before(c))); }
};

template <class F, class T, bool ftz, bool sat>
constexpr Handler two = &binary<Finished<F, T, ftz, sat>, T, T, T>;
template <class F, class T, bool ftz, bool sat>
constexpr Handler three = &ternary<Finished<F, T, ftz, sat>, T, T, T, T>;

#define BY_MODIFIERS(MAKE, F, type, ftz, sat)                                               \
  ((type) == Type::f64 ? MAKE<F, double, false, false>                                      \
   : (ftz)             ? ((sat) ? MAKE<F, float, true, true> : MAKE<F, float, true, false>) \
                       : ((sat) ? MAKE<F, float, false, true> : MAKE<F, float, false, false>))

template <class T, bool ftz>
struct Absolute {
  static T apply(T a) {
    if constexpr (ftz) a = flushed(a);
    return std::fabs(a);
  }
};
template <class T, bool ftz>
struct Negate {
  static T apply(T a) {
    if constexpr (ftz) a = flushed(a);
    return -a;
  }
};

void decode_sign(Decoder& decoder, Type type, bool absolute) {
  const bool ftz = decoder.form.take("ftz");
  same_type_operands(decoder, type, 1);
  if (type == Type::f64) {
    decoder.instruction.handler =
        absolute ? &unary<Absolute<double, false>, double, double> : &unary<Negate<double, false>, double, double>;
  } else if (ftz) {
    decoder.instruction.handler =
        absolute ? &unary<Absolute<float, true>, float, float> : &unary<Negate<float, true>, float, float>;
  } else {
    decoder.instruction.handler =
        absolute ? &unary<Absolute<float, false>, float, float> : &unary<Negate<float, false>, float, float>;
  }
}

void decode_extreme(Decoder& decoder, Type type, bool largest) {
  const bool nan_wins = decoder.form.take("NaN"), ftz = decoder.form.take("ftz");
  same_type_operands(decoder, type, 2);
  if (largest) {
    decoder.instruction.handler = nan_wins ? BY_MODIFIERS(two, decltype(Extreme<true, true>()), type, ftz, false)
                                           : BY_MODIFIERS(two, decltype(Extreme<false, true>()), type, ftz, false);
  } else {
    decoder.instruction.handler = nan_wins ? BY_MODIFIERS(two, decltype(Extreme<true, false>()), type, ftz, false)
                                           : BY_MODIFIERS(two, decltype(Extreme<false, false>()), type, ftz, false);
  }
}

}  // namespace

void decode_float(Decoder& decoder, Type type) {
  Form& form = decoder.form;
  form.take_type();
  const std::string base = form.base();
  decoder.instruction.type = type == Type::f64 ? Class::fp64 : Class::fp32;
  if (base == "abs" || base == "neg") return decode_sign(decoder, type, base == "abs");
  if (base == "min" || base == "max") return decode_extreme(decoder, type, base == "max");
  const std::string rounding = form.take_one({"rn", "rz", "rm", "rp", "approx", "full"});
  const bool ftz = form.take("ftz"), sat = form.take("sat");
  const bool is_fma = base == "fma" || base == "mad";
  if ((base == "fma" || base == "div") && rounding.empty()) decoder.fail("expected a rounding");
  if ((rounding == "approx" || rounding == "full") && (base != "div" || type != Type::f32))
    decoder.fail("cannot be " + rounding);
  same_type_operands(decoder, type, is_fma ? 3 : 2);
  if (rounding == "rz" || rounding == "rm" || rounding == "rp") {
    return decode_directed(decoder, base, type, rounding, ftz, sat);
  }
  Handler& handler = decoder.instruction.handler;
  if (base == "add") handler = BY_MODIFIERS(two, Add, type, ftz, sat);
  if (base == "sub") handler = BY_MODIFIERS(two, Subtract, type, ftz, sat);
  if (base == "mul") handler = BY_MODIFIERS(two, Multiply, type, ftz, sat);
  if (base == "div") handler = BY_MODIFIERS(two, Divide, type, ftz, sat);
  if (is_fma) handler = BY_MODIFIERS(three, FusedMultiplyAdd, type, ftz, sat);
  if (base == "div" && rounding != "rn") decoder.instruction.type = Class::special;
}

}  // namespace ptx
