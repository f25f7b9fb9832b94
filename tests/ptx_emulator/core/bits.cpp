// Bits: logic (of predicates too), shifts, fields, permutations.
#include <algorithm>
#include <bit>

#include "lanes.h"

namespace ptx {
namespace {

struct And {
  template <class T>
  static T apply(T a, T b) {
    return a & b;
  }
};
struct Or {
  template <class T>
  static T apply(T a, T b) {
    return a | b;
  }
};
struct Xor {
  template <class T>
  static T apply(T a, T b) {
    return a ^ b;
  }
};
struct Not {
  template <class T>
  static T apply(T a) {
    return static_cast<T>(~a);
  }
};
struct LogicalNot {
  template <class T>
  static T apply(T a) {
    return a == 0;
  }
};
// Amounts are 32-bit; from the width on they act as the width.
struct ShiftLeft {
  template <class T>
  static T apply(T a, std::uint32_t by) {
    return by < 8 * sizeof(T) ? static_cast<T>(a << by) : T(0);
  }
};
struct ShiftRight {
  template <class T>
  static T apply(T a, std::uint32_t by) {
    constexpr std::uint32_t last = 8 * sizeof(T) - 1;
    if constexpr (std::is_signed_v<T>) return static_cast<T>(a >> std::min(by, last));
    return by <= last ? static_cast<T>(a >> by) : T(0);
  }
};
template <bool left, bool wraps>
struct FunnelShift {
  static std::uint32_t apply(std::uint32_t low, std::uint32_t high, std::uint32_t by) {
    by = wraps ? by % 32 : std::min(by, 32u);
    const std::uint64_t both = static_cast<std::uint64_t>(high) << 32 | low;
    return static_cast<std::uint32_t>(left ? both << by >> 32 : both >> by);
  }
};
struct PopulationCount {
  template <class T>
  static std::uint32_t apply(T a) {
    return std::popcount(a);
  }
};
struct LeadingZeros {
  template <class T>
  static std::uint32_t apply(T a) {
    return std::countl_zero(a);
  }
};
struct Reverse {
  template <class T>
  static T apply(T a) {
    T result = 0;
    for (std::size_t i = 0; i < 8 * sizeof(T); ++i) result |= (a >> i & 1) << (8 * sizeof(T) - 1 - i);
    return result;
  }
};
// The highest bit that differs from the sign.
template <bool shift_amount>
struct FindBit {
  template <class T>
  static std::uint32_t apply(T a) {
    using U = std::make_unsigned_t<T>;
    const U bits = a < 0 ? static_cast<U>(~a) : static_cast<U>(a);
    if (bits == 0) return all_lanes;
    const int highest = 8 * static_cast<int>(sizeof(T)) - 1 - std::countl_zero(bits);
    return shift_amount ? 8 * sizeof(T) - 1 - highest : highest;
  }
};
struct ExtractField {
  template <class T>
  static T apply(T a, std::uint32_t position, std::uint32_t length) {
    constexpr int width = 8 * sizeof(T);
    const int at = position & 0xff, count = length & 0xff;
    using U = std::make_unsigned_t<T>;
    if (count == 0) return 0;
    const int sign_at = std::min(at + count - 1, width - 1);
    const bool sign = std::is_signed_v<T> && (static_cast<U>(a) >> sign_at & 1);
    const U field = at < width ? static_cast<U>(a) >> at : 0;
    const int kept = std::min(count, std::max(width - at, 0));
    const U mask = kept >= width ? ~U(0) : (U(1) << kept) - 1;
    return static_cast<T>(sign ? field | ~mask : field & mask);
  }
};
template <class T>
T insert_field(T a, T b, std::uint32_t position, std::uint32_t length) {
  constexpr std::uint32_t width = 8 * sizeof(T);
  const std::uint32_t at = position & 0xff, count = length & 0xff;
  if (at >= width || count == 0) return b;
  const T mask = (count >= width ? ~T(0) : (T(1) << count) - 1) << at;
  return (b & ~mask) | (a << at & mask);
}

// Type of the lanes of b16, u32, s64, ...: unsigned unless signedness matters.
#define BY_WIDTH(decoder, type, MAKE)        \
  [&]() -> Handler {                         \
    switch (bytes_of(type)) {                \
      case 2:                                \
        return MAKE(std::uint16_t);          \
      case 4:                                \
        return MAKE(std::uint32_t);          \
      case 8:                                \
        return MAKE(std::uint64_t);          \
      default:                               \
        (decoder).fail("not for this type"); \
    }                                        \
  }()

template <class F>
void predicate_logic(Warp& warp, const Instruction& in) {
  std::uint32_t& d = warp.predicate(in.operand[0]);
  const std::uint32_t value = F::apply(warp.predicate(in.operand[1]), warp.predicate(in.operand[2]));
  d = (value & warp.exec) | (d & ~warp.exec);
}
void predicate_not(Warp& warp, const Instruction& in) {
  std::uint32_t& d = warp.predicate(in.operand[0]);
  d = (~warp.predicate(in.operand[1]) & warp.exec) | (d & ~warp.exec);
}

template <class F>
void decode_logic(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  same_type_operands(decoder, type, 2);
  decoder.instruction.type = type == Type::pred ? Class::compare : Class::integer;
  if (type == Type::pred) {
    decoder.instruction.handler = &predicate_logic<F>;
    return;
  }
#define MAKE(T) &binary<F, T, T, T>
  decoder.instruction.handler = BY_WIDTH(decoder, type, MAKE);
#undef MAKE
}

void decode_not(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  same_type_operands(decoder, type, 1);
  decoder.instruction.type = type == Type::pred ? Class::compare : Class::integer;
  if (type == Type::pred) {
    decoder.instruction.handler = &predicate_not;
    return;
  }
#define MAKE(T) &unary<Not, T, T>
  decoder.instruction.handler = BY_WIDTH(decoder, type, MAKE);
#undef MAKE
}

void decode_cnot(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  same_type_operands(decoder, type, 1);
  decoder.instruction.type = Class::integer;
#define MAKE(T) &unary<LogicalNot, T, T>
  decoder.instruction.handler = BY_WIDTH(decoder, type, MAKE);
#undef MAKE
}

void shift_operands(Decoder& decoder, Type type) {
  decoder.has(3);
  decoder.instruction.operand[0] = decoder.destination(0, type);
  decoder.instruction.operand[1] = decoder.source(1, type);
  decoder.instruction.operand[2] = decoder.source(2, Type::u32);
  decoder.instruction.type = Class::integer;
}

void decode_shl(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  shift_operands(decoder, type);
#define MAKE(T) &binary<ShiftLeft, T, T, std::uint32_t>
  decoder.instruction.handler = BY_WIDTH(decoder, type, MAKE);
#undef MAKE
}

void decode_shr(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  shift_operands(decoder, type);
#define MAKE(T) &binary<ShiftRight, T, T, std::uint32_t>
#define MAKE_SIGNED(T) &binary<ShiftRight, std::make_signed_t<T>, std::make_signed_t<T>, std::uint32_t>
  decoder.instruction.handler = is_signed(type) ? BY_WIDTH(decoder, type, MAKE_SIGNED) : BY_WIDTH(decoder, type, MAKE);
#undef MAKE
#undef MAKE_SIGNED
}

void decode_shf(Decoder& decoder) {
  const bool left = decoder.form.take_one({"l", "r"}) == "l";
  const bool wraps = decoder.form.take_one({"clamp", "wrap"}) == "wrap";
  if (decoder.form.take_type() != Type::b32) decoder.fail("for b32 only");
  same_type_operands(decoder, Type::b32, 3);
  decoder.instruction.type = Class::integer;
  using U = std::uint32_t;
  decoder.instruction.handler =
      left ? (wraps ? &ternary<FunnelShift<true, true>, U, U, U, U> : &ternary<FunnelShift<true, false>, U, U, U, U>)
           : (wraps ? &ternary<FunnelShift<false, true>, U, U, U, U> : &ternary<FunnelShift<false, false>, U, U, U, U>);
}

void lop3(Warp& warp, const Instruction& in) {
  using U = std::uint32_t;
  U* d = warp.reg<U>(in.operand[0]);
  const U *a = warp.reg<U>(in.operand[1]), *b = warp.reg<U>(in.operand[2]), *c = warp.reg<U>(in.operand[3]);
  U term[8];  // all ones where the table has the term
  for (int i = 0; i < 8; ++i) term[i] = in.immediate >> i & 1 ? ~U(0) : 0;
  each_lane(warp, d, [=](int lane) {
    const U x = a[lane], y = b[lane], z = c[lane];
    return (term[0] & ~x & ~y & ~z) | (term[1] & ~x & ~y & z) | (term[2] & ~x & y & ~z) | (term[3] & ~x & y & z) |
           (term[4] & x & ~y & ~z) | (term[5] & x & ~y & z) | (term[6] & x & y & ~z) | (term[7] & x & y & z);
  });
}

void decode_lop3(Decoder& decoder) {
  if (decoder.form.take_type() != Type::b32) decoder.fail("for b32 only");
  decoder.has(5);
  decoder.instruction.operand[0] = decoder.destination(0, Type::b32);
  for (int i = 1; i <= 3; ++i) decoder.instruction.operand[i] = decoder.source(i, Type::b32);
  decoder.instruction.immediate = decoder.immediate(4);
  decoder.instruction.type = Class::integer;
  decoder.instruction.handler = &lop3;
}

// Which byte of {b, a} each byte of the result takes, by mode; bit 3 of a nibble repeats the byte's sign.
std::uint32_t selectors(const std::string& mode, std::uint32_t c) {
  const std::uint32_t s = c & 3;
  if (mode == "f4e") return s | (s + 1) << 4 | (s + 2) << 8 | (s + 3) << 12;
  if (mode == "b4e") return s | ((s - 1) & 7) << 4 | ((s - 2) & 7) << 8 | ((s - 3) & 7) << 12;
  if (mode == "rc8") return s * 0x1111;
  if (mode == "ecl") return std::max(s, 0u) | std::max(s, 1u) << 4 | std::max(s, 2u) << 8 | 3u << 12;
  if (mode == "ecr") return 0u | std::min(s, 1u) << 4 | std::min(s, 2u) << 8 | s << 12;
  if (mode == "rc16") return s & 1 ? 0x3232 : 0x1010;
  return c;
}

template <class Selectors>
void permute(Warp& warp, const Instruction& in, Selectors select) {
  using U = std::uint32_t;
  U* d = warp.reg<U>(in.operand[0]);
  const U *a = warp.reg<U>(in.operand[1]), *b = warp.reg<U>(in.operand[2]), *c = warp.reg<U>(in.operand[3]);
  for_lanes(warp.exec, [&](int lane) {
    const std::uint64_t both = static_cast<std::uint64_t>(b[lane]) << 32 | a[lane];
    const U chosen = select(c[lane]);
    U result = 0;
    for (int i = 0; i < 4; ++i) {
      const U nibble = chosen >> (4 * i) & 0xf;
      const U byte = both >> (8 * (nibble & 7)) & 0xff;
      result |= (nibble & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << (8 * i);
    }
    d[lane] = result;
  });
}

constexpr const char* prmt_modes[] = {"", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};

void prmt(Warp& warp, const Instruction& in) {
  permute(warp, in, [](std::uint32_t c) { return c & 0xffff; });
}
void prmt_by_mode(Warp& warp, const Instruction& in) {
  const std::string mode = prmt_modes[in.choice];
  permute(warp, in, [&](std::uint32_t c) { return selectors(mode, c); });
}

void decode_prmt(Decoder& decoder) {
  if (decoder.form.take_type() != Type::b32) decoder.fail("for b32 only");
  const std::string mode = decoder.form.take_one({"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"});
  same_type_operands(decoder, Type::b32, 3);
  const auto found = std::find(std::begin(prmt_modes), std::end(prmt_modes), mode);
  decoder.instruction.choice = static_cast<std::uint8_t>(found - std::begin(prmt_modes));
  decoder.instruction.type = Class::integer;
  decoder.instruction.handler = mode.empty() ? &prmt : &prmt_by_mode;
}

template <class F>
void decode_count(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  decoder.has(2);
  decoder.instruction.operand[0] = decoder.destination(0, Type::u32);
  decoder.instruction.operand[1] = decoder.source(1, type);
  decoder.instruction.type = Class::integer;
  if (bytes_of(type) < 4) decoder.fail("for b32 and b64 only");
  decoder.instruction.handler = bytes_of(type) == 4 ? &unary_scalar<F, std::uint32_t, std::uint32_t>
                                                    : &unary_scalar<F, std::uint32_t, std::uint64_t>;
}

void decode_brev(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  same_type_operands(decoder, type, 1);
  decoder.instruction.type = Class::integer;
  if (bytes_of(type) < 4) decoder.fail("for b32 and b64 only");
  decoder.instruction.handler = bytes_of(type) == 4 ? &unary_scalar<Reverse, std::uint32_t, std::uint32_t>
                                                    : &unary_scalar<Reverse, std::uint64_t, std::uint64_t>;
}

template <bool shift_amount>
Handler find_bit_by_type(Decoder& decoder, Type type) {
  using F = FindBit<shift_amount>;
  switch (type) {
    case Type::u32:
      return &unary_scalar<F, std::uint32_t, std::uint32_t>;
    case Type::s32:
      return &unary_scalar<F, std::uint32_t, std::int32_t>;
    case Type::u64:
      return &unary_scalar<F, std::uint32_t, std::uint64_t>;
    case Type::s64:
      return &unary_scalar<F, std::uint32_t, std::int64_t>;
    default:
      decoder.fail("not for this type");
  }
}

void decode_bfind(Decoder& decoder) {
  const bool amount = decoder.form.take("shiftamt");
  const Type type = decoder.form.take_type();
  decoder.has(2);
  decoder.instruction.operand[0] = decoder.destination(0, Type::u32);
  decoder.instruction.operand[1] = decoder.source(1, type);
  decoder.instruction.type = Class::integer;
  decoder.instruction.handler = amount ? find_bit_by_type<true>(decoder, type) : find_bit_by_type<false>(decoder, type);
}

void decode_bfe(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  decoder.has(4);
  decoder.instruction.operand[0] = decoder.destination(0, type);
  decoder.instruction.operand[1] = decoder.source(1, type);
  for (int i = 2; i <= 3; ++i) decoder.instruction.operand[i] = decoder.source(i, Type::u32);
  decoder.instruction.type = Class::integer;
  Handler& handler = decoder.instruction.handler;
  using Position = std::uint32_t;
  switch (type) {
    case Type::u32:
      handler = &ternary<ExtractField, std::uint32_t, std::uint32_t, Position, Position>;
      break;
    case Type::s32:
      handler = &ternary<ExtractField, std::int32_t, std::int32_t, Position, Position>;
      break;
    case Type::u64:
      handler = &ternary<ExtractField, std::uint64_t, std::uint64_t, Position, Position>;
      break;
    case Type::s64:
      handler = &ternary<ExtractField, std::int64_t, std::int64_t, Position, Position>;
      break;
    default:
      decoder.fail("not for this type");
  }
}

template <class T>
void bfi(Warp& warp, const Instruction& in) {
  T* d = warp.reg<T>(in.list[0]);
  const T *a = warp.reg<T>(in.list[1]), *b = warp.reg<T>(in.list[2]);
  const std::uint32_t *at = warp.reg<std::uint32_t>(in.list[3]), *length = warp.reg<std::uint32_t>(in.list[4]);
  for_lanes(warp.exec, [&](int lane) { d[lane] = insert_field<T>(a[lane], b[lane], at[lane], length[lane]); });
}

void decode_bfi(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  decoder.has(5);
  if (bytes_of(type) < 4) decoder.fail("for b32 and b64 only");
  decoder.instruction.list =
      decoder.list({decoder.destination(0, type), decoder.source(1, type), decoder.source(2, type),
                    decoder.source(3, Type::u32), decoder.source(4, Type::u32)});
  decoder.instruction.type = Class::integer;
  decoder.instruction.handler = bytes_of(type) == 4 ? &bfi<std::uint32_t> : &bfi<std::uint64_t>;
}

}  // namespace

void add_bits(DecodeTable& table) {
  table["and"] = decode_logic<And>;
  table["or"] = decode_logic<Or>;
  table["xor"] = decode_logic<Xor>;
  table["not"] = decode_not;
  table["cnot"] = decode_cnot;
  table["shl"] = decode_shl;
  table["shr"] = decode_shr;
  table["shf"] = decode_shf;
  table["lop3"] = decode_lop3;
  table["prmt"] = decode_prmt;
  table["popc"] = decode_count<PopulationCount>;
  table["clz"] = decode_count<LeadingZeros>;
  table["brev"] = decode_brev;
  table["bfind"] = decode_bfind;
  table["bfe"] = decode_bfe;
  table["bfi"] = decode_bfi;
}

}  // namespace ptx
