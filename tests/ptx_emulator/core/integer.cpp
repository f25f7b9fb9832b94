// Integer arithmetic. Sums and products wrap; they are computed unsigned, where C++ lets them.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "lanes.h"

namespace ptx {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;

// Wide enough to hold a product.
template <class T>
struct WideOf;
template <>
struct WideOf<std::int16_t> {
  using type = std::int32_t;
};
template <>
struct WideOf<std::uint16_t> {
  using type = std::uint32_t;
};
template <>
struct WideOf<std::int32_t> {
  using type = std::int64_t;
};
template <>
struct WideOf<std::uint32_t> {
  using type = std::uint64_t;
};
template <>
struct WideOf<std::int64_t> {
  using type = __int128;
};
template <>
struct WideOf<std::uint64_t> {
  using type = unsigned __int128;
};
template <class T>
using Wide = typename WideOf<T>::type;

template <class T>
T wrapping_multiply(T a, T b) {  // through 64 bits: 16-bit operands would be promoted to int
  return static_cast<T>(static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b));
}

struct Add {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(Unsigned<T>(a) + Unsigned<T>(b));
  }
};
struct Subtract {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(Unsigned<T>(a) - Unsigned<T>(b));
  }
};
template <class F>
struct Saturated {
  static std::int32_t apply(std::int32_t a, std::int32_t b) {
    const std::int64_t exact = std::is_same_v<F, Add> ? std::int64_t(a) + b : std::int64_t(a) - b;
    return static_cast<std::int32_t>(std::clamp<std::int64_t>(exact, INT32_MIN, INT32_MAX));
  }
};
struct MultiplyLow {
  template <class T>
  static T apply(T a, T b) {
    return wrapping_multiply(a, b);
  }
};
struct MultiplyHigh {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>((Wide<T>(a) * Wide<T>(b)) >> (8 * sizeof(T)));
  }
};
struct MultiplyWide {
  template <class T>
  static Wide<T> apply(T a, T b) {
    return Wide<T>(a) * Wide<T>(b);
  }
};
struct MultiplyAddLow {
  template <class T>
  static T apply(T a, T b, T c) {
    return Add::apply(wrapping_multiply(a, b), c);
  }
};
struct MultiplyAddHigh {
  template <class T>
  static T apply(T a, T b, T c) {
    return Add::apply(MultiplyHigh::apply(a, b), c);
  }
};
struct MultiplyAddWide {
  template <class T>
  static Wide<T> apply(T a, T b, Wide<T> c) {
    return Add::apply(Wide<T>(Wide<T>(a) * Wide<T>(b)), c);
  }
};
struct Minimum {
  template <class T>
  static T apply(T a, T b) {
    return b < a ? b : a;
  }
};
struct Maximum {
  template <class T>
  static T apply(T a, T b) {
    return a < b ? b : a;
  }
};
struct Absolute {
  template <class T>
  static T apply(T a) {
    return a < 0 ? Subtract::apply(T(0), a) : a;
  }
};
struct Negate {
  template <class T>
  static T apply(T a) {
    return Subtract::apply(T(0), a);
  }
};
// PTX leaves a division by zero open; devices give all ones, and the dividend as remainder.
struct Divide {
  template <class T>
  static T apply(T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Subtract::apply(T(0), a);
    return static_cast<T>(a / b);
  }
};
struct Remainder {
  template <class T>
  static T apply(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
struct SumOfAbsoluteDifferences {
  template <class T>
  static T apply(T a, T b, T c) {
    return Add::apply(a < b ? Subtract::apply(b, a) : Subtract::apply(a, b), c);
  }
};

// c + a0 b0 + a1 b1: a holds two numbers of 16 bits, b four of 8, of which two are taken, from First on.
template <class A, class B, int First>
struct DotOfPairs {
  static std::uint32_t apply(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
    for (int i = 0; i < 2; ++i) {
      const std::int32_t product = static_cast<A>(a >> 16 * i) * static_cast<B>(b >> 8 * (First + i));
      c += static_cast<std::uint32_t>(product);
    }
    return c;
  }
};

template <class F, class T>
constexpr Handler same1 = &unary<F, T, T>;
template <class F, class T>
constexpr Handler same2 = &binary<F, T, T, T>;
template <class F, class T>
constexpr Handler same3 = &ternary<F, T, T, T, T>;
template <class F, class T>
constexpr Handler scalar2 = &binary_scalar<F, T, T, T>;

// The handler of a function of integers for a type. Make: which of the above.
#define BY_TYPE(decoder, type, MAKE, F)      \
  [&]() -> Handler {                         \
    switch (type) {                          \
      case Type::s16:                        \
        return MAKE<F, std::int16_t>;        \
      case Type::u16:                        \
        return MAKE<F, std::uint16_t>;       \
      case Type::s32:                        \
        return MAKE<F, std::int32_t>;        \
      case Type::u32:                        \
        return MAKE<F, std::uint32_t>;       \
      case Type::s64:                        \
        return MAKE<F, std::int64_t>;        \
      case Type::u64:                        \
        return MAKE<F, std::uint64_t>;       \
      default:                               \
        (decoder).fail("not for this type"); \
    }                                        \
  }()

template <class F, class T>
constexpr Handler wide2 = &binary<F, Wide<T>, T, T>;
template <class F, class T>
constexpr Handler wide3 = &ternary<F, Wide<T>, T, T, Wide<T>>;

Type widened(Decoder& decoder, Type type) {
  switch (type) {
    case Type::s16:
      return Type::s32;
    case Type::u16:
      return Type::u32;
    case Type::s32:
      return Type::s64;
    case Type::u32:
      return Type::u64;
    default:
      decoder.fail("not for this type");
  }
}

template <class F>
Handler wide2_by_type(Decoder& decoder, Type type) {
  switch (type) {
    case Type::s16:
      return wide2<F, std::int16_t>;
    case Type::u16:
      return wide2<F, std::uint16_t>;
    case Type::s32:
      return wide2<F, std::int32_t>;
    case Type::u32:
      return wide2<F, std::uint32_t>;
    default:
      decoder.fail("not for this type");
  }
}
template <class F>
Handler wide3_by_type(Decoder& decoder, Type type) {
  switch (type) {
    case Type::s16:
      return wide3<F, std::int16_t>;
    case Type::u16:
      return wide3<F, std::uint16_t>;
    case Type::s32:
      return wide3<F, std::int32_t>;
    case Type::u32:
      return wide3<F, std::uint32_t>;
    default:
      decoder.fail("not for this type");
  }
}

}  // namespace

template <class F>
void decode_sum(Decoder& decoder) {
  const bool saturates = decoder.form.take("sat");
  const Type type = decoder.form.take_type();
  same_type_operands(decoder, type, 2);
  decoder.instruction.type = Class::integer;
  if (saturates && type != Type::s32) decoder.fail("saturates for s32 only");
  decoder.instruction.handler =
      saturates ? &binary<Saturated<F>, std::int32_t, std::int32_t, std::int32_t> : BY_TYPE(decoder, type, same2, F);
}
void decode_integer_add(Decoder& decoder) { decode_sum<Add>(decoder); }
void decode_integer_sub(Decoder& decoder) { decode_sum<Subtract>(decoder); }

void decode_integer_mul(Decoder& decoder) {
  const std::string part = decoder.form.take_one({"lo", "hi", "wide"});
  const Type type = decoder.form.take_type();
  decoder.instruction.type = Class::integer;
  if (part == "wide") {
    decoder.has(3);
    decoder.instruction.operand[0] = decoder.destination(0, widened(decoder, type));
    for (int i = 1; i <= 2; ++i) decoder.instruction.operand[i] = decoder.source(i, type);
    decoder.instruction.handler = wide2_by_type<MultiplyWide>(decoder, type);
    return;
  }
  if (part.empty()) decoder.fail("expected lo, hi or wide");
  same_type_operands(decoder, type, 2);
  decoder.instruction.handler =
      part == "lo" ? BY_TYPE(decoder, type, same2, MultiplyLow) : BY_TYPE(decoder, type, same2, MultiplyHigh);
}

void decode_integer_mad(Decoder& decoder) {
  const std::string part = decoder.form.take_one({"lo", "hi", "wide"});
  const Type type = decoder.form.take_type();
  decoder.instruction.type = Class::integer;
  if (part == "wide") {
    decoder.has(4);
    const Type wide = widened(decoder, type);
    decoder.instruction.operand[0] = decoder.destination(0, wide);
    for (int i = 1; i <= 2; ++i) decoder.instruction.operand[i] = decoder.source(i, type);
    decoder.instruction.operand[3] = decoder.source(3, wide);
    decoder.instruction.handler = wide3_by_type<MultiplyAddWide>(decoder, type);
    return;
  }
  if (part.empty()) decoder.fail("expected lo, hi or wide");
  same_type_operands(decoder, type, 3);
  decoder.instruction.handler =
      part == "lo" ? BY_TYPE(decoder, type, same3, MultiplyAddLow) : BY_TYPE(decoder, type, same3, MultiplyAddHigh);
}

void decode_integer_min(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  same_type_operands(decoder, type, 2);
  decoder.instruction.type = Class::integer;
  decoder.instruction.handler = BY_TYPE(decoder, type, same2, Minimum);
}
void decode_integer_max(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  same_type_operands(decoder, type, 2);
  decoder.instruction.type = Class::integer;
  decoder.instruction.handler = BY_TYPE(decoder, type, same2, Maximum);
}
void decode_integer_abs(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  same_type_operands(decoder, type, 1);
  decoder.instruction.type = Class::integer;
  if (!is_signed(type)) decoder.fail("for signed types only");
  decoder.instruction.handler = BY_TYPE(decoder, type, same1, Absolute);
}
void decode_integer_neg(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  same_type_operands(decoder, type, 1);
  decoder.instruction.type = Class::integer;
  if (!is_signed(type)) decoder.fail("for signed types only");
  decoder.instruction.handler = BY_TYPE(decoder, type, same1, Negate);
}
void decode_integer_div(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  same_type_operands(decoder, type, 2);
  decoder.instruction.type = Class::integer;
  decoder.instruction.handler = BY_TYPE(decoder, type, scalar2, Divide);
}

namespace {

void decode_rem(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  same_type_operands(decoder, type, 2);
  decoder.instruction.type = Class::integer;
  decoder.instruction.handler = BY_TYPE(decoder, type, scalar2, Remainder);
}

void decode_sad(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  same_type_operands(decoder, type, 3);
  decoder.instruction.type = Class::integer;
  decoder.instruction.handler = BY_TYPE(decoder, type, same3, SumOfAbsoluteDifferences);
}

template <class A, class B>
Handler dot_of_pairs(bool high) {
  using U = std::uint32_t;
  return high ? &ternary<DotOfPairs<A, B, 2>, U, U, U, U> : &ternary<DotOfPairs<A, B, 0>, U, U, U, U>;
}

template <class A>
Handler dot_of_pairs_by(Type b, bool high) {
  return is_signed(b) ? dot_of_pairs<A, std::int8_t>(high) : dot_of_pairs<A, std::uint8_t>(high);
}

void decode_dp2a(Decoder& decoder) {
  const std::string part = decoder.form.take_one({"lo", "hi"});
  if (part.empty()) decoder.fail("expected lo or hi");
  const Type a = decoder.form.take_type(), b = decoder.form.take_type();
  same_type_operands(decoder, Type::b32, 3);
  decoder.instruction.type = Class::integer;
  decoder.instruction.handler =
      is_signed(a) ? dot_of_pairs_by<std::int16_t>(b, part == "hi") : dot_of_pairs_by<std::uint16_t>(b, part == "hi");
}

}  // namespace

// add, sub, mul, ... themselves are decoded in arithmetic.cpp, which picks integer, float or half by the type.
void add_integer(DecodeTable& table) {
  table["rem"] = decode_rem;
  table["sad"] = decode_sad;
  table["dp2a"] = decode_dp2a;
}

}  // namespace ptx
