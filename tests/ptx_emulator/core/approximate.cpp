// The special function unit: rcp, sqrt, rsqrt, ex2, lg2, sin, cos, tanh. Their PTX errors are bounds; here they are
// computed in double and rounded, which keeps within every bound.
#include <algorithm>

#include "floats.h"
#include "lanes.h"

namespace ptx {
namespace {

// 2^x for x of f32's range, to about 1e-9: as vectors, which the library's is not. 2^f is a Taylor sum for |f| <= 0.5.
double exp2_of(double x) {
  x = x < -160 ? -160 : x;  // below even subnormal numbers
  x = x > 160 ? 160 : x;
  const double whole = (x + 0x1.8p52) - 0x1.8p52;
  const double f = (x - whole) * 0.6931471805599453094;
  double sum = 1.0 / 39916800;
  sum = sum * f + 1.0 / 3628800;
  sum = sum * f + 1.0 / 362880;
  sum = sum * f + 1.0 / 40320;
  sum = sum * f + 1.0 / 5040;
  sum = sum * f + 1.0 / 720;
  sum = sum * f + 1.0 / 120;
  sum = sum * f + 1.0 / 24;
  sum = sum * f + 1.0 / 6;
  sum = sum * f + 0.5;
  sum = sum * f + 1.0;
  sum = sum * f + 1.0;
  const auto exponent = static_cast<std::int64_t>(std::bit_cast<std::uint64_t>(x + 0x1.8p52) - 0x4338000000000000u);
  return sum * std::bit_cast<double>(static_cast<std::uint64_t>(exponent + 1023) << 52);
}

struct Exp2 {
  static float apply(float x) { return x == x ? static_cast<float>(exp2_of(x)) : x; }
};
struct Log2 {
  static float apply(float x) { return static_cast<float>(std::log2(static_cast<double>(x))); }
};
struct Reciprocal {
  template <class T>
  static T apply(T x) {
    return T(1) / x;
  }
};
struct SquareRoot {
  template <class T>
  static T apply(T x) {
    return std::sqrt(x);
  }
};
struct ReciprocalSquareRoot {
  template <class T>
  static T apply(T x) {
    return static_cast<T>(1 / std::sqrt(static_cast<double>(x)));
  }
};
struct Sine {
  static float apply(float x) { return static_cast<float>(std::sin(static_cast<double>(x))); }
};
struct Cosine {
  static float apply(float x) { return static_cast<float>(std::cos(static_cast<double>(x))); }
};
struct Tanh {
  static float apply(float x) { return static_cast<float>(std::tanh(static_cast<double>(x))); }
};

template <class F, bool ftz>
struct Finished {
  static float apply(float x) {
    if constexpr (ftz) return canonical(flushed(F::apply(flushed(x))));
    return canonical(F::apply(x));
  }
};

template <class F>
void decode_approximate(Decoder& decoder, bool as_vectors) {
  const bool ftz = decoder.form.take("ftz");
  same_type_operands(decoder, Type::f32, 1);
  decoder.instruction.type = Class::special;
  decoder.instruction.handler =
      as_vectors
          ? (ftz ? &unary<Finished<F, true>, float, float> : &unary<Finished<F, false>, float, float>)
          : (ftz ? &unary_scalar<Finished<F, true>, float, float> : &unary_scalar<Finished<F, false>, float, float>);
}

// Functions of the 16-bit formats, alone or in pairs. choice: the function; flag: bf16; immediate: values per lane.
void half_function(Warp& warp, const Instruction& in) {
  std::uint16_t* d = warp.reg<std::uint16_t>(in.operand[0]);
  const std::uint16_t* a = warp.reg<std::uint16_t>(in.operand[1]);
  const int each = static_cast<int>(in.immediate);
  for_lanes(warp.exec, [&](int lane) {
    for (int i = each * lane; i < each * (lane + 1); ++i) {
      const double x = in.flag ? float_of_bf16(a[i]) : float_of_f16(a[i]);
      const double exact = in.choice == 'e' ? std::exp2(x) : std::tanh(x);
      const Format& format = in.flag ? bf16_format : f16_format;
      d[i] = static_cast<std::uint16_t>(rounded_bits(exact, format, Rounding::nearest, 0x7fff));
    }
  });
}

void decode_half_function(Decoder& decoder, Type type) {
  if (type == Type::bf16 || type == Type::bf16x2) decoder.form.take("ftz");
  same_type_operands(decoder, type, 1);
  decoder.instruction.type = Class::special;
  decoder.instruction.choice = static_cast<std::uint8_t>(decoder.form.base()[0]);
  decoder.instruction.flag = type == Type::bf16 || type == Type::bf16x2;
  decoder.instruction.immediate = bytes_of(type) / 2;
  decoder.instruction.handler = &half_function;
}

template <class F, bool halves>
void decode_function(Decoder& decoder) {  // ex2, tanh, lg2, sin, cos
  if (!decoder.form.take("approx")) decoder.fail("expected approx");
  const Type type = decoder.form.take_type();
  if (type == Type::f32) return decode_approximate<F>(decoder, std::is_same_v<F, Exp2>);
  if (!halves || (bytes_of(type) != 2 && bytes_of(type) != 4)) decoder.fail("not for this type");
  decode_half_function(decoder, type);
}

template <class F>
void decode_root(Decoder& decoder) {  // rcp, sqrt, rsqrt
  const std::string rounding = decoder.form.take_one({"approx", "rn"});
  if (rounding.empty()) decoder.fail("expected approx or rn");
  const Type type = decoder.form.take_type();
  if (type == Type::f32) return decode_approximate<F>(decoder, true);
  if (type != Type::f64) decoder.fail("not for this type");
  decoder.form.take("ftz");
  same_type_operands(decoder, type, 1);
  decoder.instruction.type = Class::fp64;
  decoder.instruction.handler = &unary<F, double, double>;
}

}  // namespace

void add_approximate(DecodeTable& table) {
  table["ex2"] = decode_function<Exp2, true>;
  table["tanh"] = decode_function<Tanh, true>;
  table["lg2"] = decode_function<Log2, false>;
  table["sin"] = decode_function<Sine, false>;
  table["cos"] = decode_function<Cosine, false>;
  table["rcp"] = decode_root<Reciprocal>;
  table["sqrt"] = decode_root<SquareRoot>;
  table["rsqrt"] = decode_root<ReciprocalSquareRoot>;
}

}  // namespace ptx
