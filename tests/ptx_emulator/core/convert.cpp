// cvt: between integers, floats and 16-bit floats, and packing two f32 into one register.
#include <algorithm>

#include "floats.h"
#include "lanes.h"
#include "rounding.h"

namespace ptx {
namespace {

// Everything about one conversion, kept in Instruction::immediate.
struct Conversion {
  Type to, from;
  Rounding rounding;
  std::uint8_t integral : 1, ftz : 1, sat : 1, relu : 1, satfinite : 1;
  std::uint8_t to_register, from_register;  // bytes
};
static_assert(sizeof(Conversion) <= sizeof(std::int64_t));

Conversion conversion_of(const Instruction& in) {
  Conversion result;
  std::memcpy(&result, &in.immediate, sizeof(result));
  return result;
}

bool is_float(Type type) {
  return type == Type::f16 || type == Type::bf16 || type == Type::f32 || type == Type::f64 || type == Type::tf32;
}

double float_value(std::uint64_t raw, Type type) {
  switch (type) {
    case Type::f16:
      return float_of_f16(static_cast<std::uint16_t>(raw));
    case Type::bf16:
      return float_of_bf16(static_cast<std::uint16_t>(raw));
    case Type::f64:
      return std::bit_cast<double>(raw);
    default:
      return float_of(static_cast<std::uint32_t>(raw));
  }
}

__int128 integer_value(std::uint64_t raw, Type type) {
  switch (type) {
    case Type::s8:
      return static_cast<std::int8_t>(raw);
    case Type::s16:
      return static_cast<std::int16_t>(raw);
    case Type::s32:
      return static_cast<std::int32_t>(raw);
    case Type::s64:
      return static_cast<std::int64_t>(raw);
    case Type::u8:
    case Type::b8:
      return static_cast<std::uint8_t>(raw);
    case Type::u16:
    case Type::b16:
      return static_cast<std::uint16_t>(raw);
    case Type::u32:
    case Type::b32:
      return static_cast<std::uint32_t>(raw);
    default:
      return raw;
  }
}

__int128 clamped(__int128 x, Type type) {
  const int bits = 8 * bytes_of(type);
  const __int128 low = is_signed(type) ? -(__int128(1) << (bits - 1)) : 0;
  const __int128 high = (__int128(1) << (bits - (is_signed(type) ? 1 : 0))) - 1;
  return std::clamp(x, low, high);
}

std::uint64_t integer_from_float(double x, const Conversion& c) {
  if (x != x) return 0;
  const double whole = round_to_integral(x, c.rounding);
  if (std::fabs(whole) >= 0x1p100)
    return static_cast<std::uint64_t>(clamped(whole < 0 ? -(__int128(1) << 100) : __int128(1) << 100, c.to));
  return static_cast<std::uint64_t>(clamped(static_cast<__int128>(whole), c.to));
}

std::uint64_t float_from_float(double x, const Conversion& c) {
  if (c.ftz && c.from == Type::f32) x = flushed(static_cast<float>(x));
  if (c.integral) x = x == x ? round_to_integral(x, c.rounding) : x;
  if (c.sat) x = saturated(x);
  if (c.relu && x < 0) x = 0;
  if (c.relu && x == 0) x = 0;  // -0 too
  const auto round = [&](const Format& format, std::uint32_t nan) {
    if (c.satfinite && std::isinf(x))
      return (std::signbit(x) ? 1u << (format.mantissa_bits + format.exponent_bits) : 0u) | (format.infinity() - 1);
    return rounded_bits(x, format, c.rounding, nan);
  };
  switch (c.to) {
    case Type::f16:
      return round(f16_format, 0x7fff);
    case Type::bf16:
      return round(bf16_format, 0x7fff);
    case Type::tf32:
      return std::uint64_t(rounded_bits(x, tf32_format, c.rounding, 0x3ffff)) << 13 | (x == x ? 0 : 0x1fff);
    case Type::f64:
      return std::bit_cast<std::uint64_t>(x);
    default: {
      const float narrow = canonical(convert_to_float(x, c.integral ? Rounding::nearest : c.rounding));
      return bits_of(c.ftz ? flushed(narrow) : narrow);
    }
  }
}

std::uint64_t float_from_integer(__int128 x, const Conversion& c) {
  const bool negative = x < 0;
  const auto as_signed = static_cast<std::int64_t>(x);
  const auto as_unsigned = static_cast<std::uint64_t>(x);
  if (c.to == Type::f64) {
    const double wide =
        negative ? convert_to_double(as_signed, c.rounding) : convert_to_double(as_unsigned, c.rounding);
    return std::bit_cast<std::uint64_t>(c.sat ? saturated(wide) : wide);
  }
  if (c.to == Type::f32) {
    const float narrow = negative ? convert_to_float(as_signed, c.rounding) : convert_to_float(as_unsigned, c.rounding);
    return bits_of(c.sat ? saturated(narrow) : narrow);
  }
  // Through double rounded to odd, so that rounding again is exact.
  double wide = static_cast<double>(x);
  const auto error = x - static_cast<__int128>(wide);
  if (error != 0 && !(std::bit_cast<std::uint64_t>(wide) & 1))
    wide = std::nextafter(wide, error > 0 ? HUGE_VAL : -HUGE_VAL);
  return rounded_bits(c.sat ? saturated(wide) : wide, c.to == Type::f16 ? f16_format : bf16_format, c.rounding, 0x7fff);
}

std::uint64_t converted(std::uint64_t raw, const Conversion& c) {
  if (is_float(c.from)) {
    double x = float_value(raw, c.from);
    if (c.ftz && c.from == Type::f32) x = flushed(static_cast<float>(x));
    return is_float(c.to) ? float_from_float(x, c) : integer_from_float(x, c);
  }
  const __int128 x = integer_value(raw, c.from);
  if (is_float(c.to)) return float_from_integer(x, c);
  return static_cast<std::uint64_t>(c.sat ? clamped(x, c.to) : x);
}

// The bits of a narrow result in a wider register: extended as its type says.
std::uint64_t extended(std::uint64_t raw, Type type) {
  if (is_float(type)) return raw;
  return static_cast<std::uint64_t>(integer_value(raw, type));
}

void convert_any(Warp& warp, const Instruction& in) {
  const Conversion c = conversion_of(in);
  std::byte *d = warp.reg<std::byte>(in.operand[0]), *a = warp.reg<std::byte>(in.operand[1]);
  for_lanes(warp.exec, [&](int lane) {
    std::uint64_t raw = 0;
    std::memcpy(&raw, a + lane * c.from_register, c.from_register);
    const std::uint64_t result = extended(converted(raw, c), c.to);
    std::memcpy(d + lane * c.to_register, &result, c.to_register);
  });
}

void convert_pair(Warp& warp, const Instruction& in) {  // the first source goes to the upper half
  const Conversion c = conversion_of(in);
  std::uint32_t* d = warp.reg<std::uint32_t>(in.operand[0]);
  const float *a = warp.reg<float>(in.operand[1]), *b = warp.reg<float>(in.operand[2]);
  for_lanes(warp.exec, [&](int lane) {
    d[lane] = static_cast<std::uint32_t>(float_from_float(a[lane], c) << 16 | float_from_float(b[lane], c));
  });
}

// The conversions that inner loops have, as vectors.
struct ToBF16 {
  static std::uint16_t apply(float x) { return bf16_of(x); }
};
struct ToF16 {
  static std::uint16_t apply(float x) { return f16_of(x); }
};
struct ToBF16Pair {
  static std::uint32_t apply(float high, float low) {
    return static_cast<std::uint32_t>(bf16_of(high)) << 16 | bf16_of(low);
  }
};
struct ToF16Pair {
  static std::uint32_t apply(float high, float low) {
    return static_cast<std::uint32_t>(f16_of(high)) << 16 | f16_of(low);
  }
};
struct FromBF16 {
  static float apply(std::uint16_t x) { return canonical(float_of_bf16(x)); }
};
struct FromF16 {
  static float apply(std::uint16_t x) { return canonical(float_of_f16(x)); }
};
template <class To>
struct Cast {
  template <class From>
  static To apply(From x) {
    return static_cast<To>(x);
  }
};

Handler fast_handler(const Conversion& c) {
  if (c.sat || c.ftz || c.relu || c.satfinite || c.integral || c.rounding != Rounding::nearest) return nullptr;
  if (c.to_register != bytes_of(c.to) || c.from_register != bytes_of(c.from)) return nullptr;
  using I32 = std::int32_t;
  using U32 = std::uint32_t;
  using I64 = std::int64_t;
  using U64 = std::uint64_t;
  const auto is = [&](Type to, Type from) { return c.to == to && c.from == from; };
  if (is(Type::bf16, Type::f32)) return &unary<ToBF16, std::uint16_t, float>;
  if (is(Type::f16, Type::f32)) return &unary<ToF16, std::uint16_t, float>;
  if (is(Type::f32, Type::bf16)) return &unary<FromBF16, float, std::uint16_t>;
  if (is(Type::f32, Type::f16)) return &unary<FromF16, float, std::uint16_t>;
  if (is(Type::f32, Type::s32)) return &unary<Cast<float>, float, I32>;
  if (is(Type::f32, Type::u32)) return &unary<Cast<float>, float, U32>;
  if (is(Type::s64, Type::s32)) return &unary<Cast<I64>, I64, I32>;
  if (is(Type::u64, Type::u32)) return &unary<Cast<U64>, U64, U32>;
  if (is(Type::u32, Type::u64) || is(Type::s32, Type::s64) || is(Type::u32, Type::s64))
    return &unary<Cast<U32>, U32, U64>;
  return nullptr;
}

Rounding rounding_of(Form& form, bool& integral) {
  const std::string name = form.take_one({"rni", "rzi", "rmi", "rpi", "rna", "rn", "rz", "rm", "rp"});
  integral = name.size() == 3 && name[2] == 'i';
  if (name == "rna") return Rounding::nearest_away;
  return name.empty() ? Rounding::nearest : rounding_named(name[1]);
}

int register_bytes_for(Decoder& decoder, int index, Type type) {
  const int bytes = decoder.is_register(index) ? decoder.register_bytes(index) : bytes_of(type);
  const bool exact = is_float(type);
  if (exact ? bytes != bytes_of(type) : bytes < bytes_of(type))
    decoder.fail("a register of another width than its type");
  return bytes;
}

void decode_cvt(Decoder& decoder) {
  Form& form = decoder.form;
  Conversion c{};
  bool integral;
  c.rounding = rounding_of(form, integral);
  c.integral = integral;
  c.ftz = form.take("ftz"), c.relu = form.take("relu");
  c.satfinite = form.take("satfinite"), c.sat = form.take("sat");
  c.to = form.take_type();
  c.from = form.take_type();
  Instruction& in = decoder.instruction;
  in.type = Class::convert;
  const bool pair = c.to == Type::bf16x2 || c.to == Type::f16x2;
  decoder.has(pair ? 3 : 2);
  if (pair) {
    if (c.from != Type::f32) decoder.fail("pairs are made of f32 only");
    in.operand[0] = decoder.destination(0, c.to);
    for (int i = 1; i <= 2; ++i) in.operand[i] = decoder.source(i, Type::f32);
    const bool plain = !c.relu && !c.satfinite && c.rounding == Rounding::nearest;
    const bool brain = c.to == Type::bf16x2;
    c.to = brain ? Type::bf16 : Type::f16;
    in.handler = !plain  ? &convert_pair
                 : brain ? &binary<ToBF16Pair, std::uint32_t, float, float>
                         : &binary<ToF16Pair, std::uint32_t, float, float>;
  } else {
    c.to_register = static_cast<std::uint8_t>(register_bytes_for(decoder, 0, c.to));
    c.from_register = static_cast<std::uint8_t>(register_bytes_for(decoder, 1, c.from));
    in.operand[0] = decoder.destination(decoder.operand(0), c.to_register);
    in.operand[1] = decoder.source(decoder.operand(1), c.from_register);
    if (is_float(c.from) && !is_float(c.to) && !integral)
      decoder.fail("from float to integer needs an integer rounding");
    const Handler fast = fast_handler(c);
    in.handler = fast ? fast : &convert_any;
  }
  std::memcpy(&in.immediate, &c, sizeof(c));
}

}  // namespace

void add_convert(DecodeTable& table) { table["cvt"] = decode_cvt; }

}  // namespace ptx
