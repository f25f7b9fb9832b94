// set, setp, selp, slct, and mov and logic of predicates that come with them.
#include <algorithm>
#include <cmath>

#include "floats.h"
#include "lanes.h"

namespace ptx {
namespace {

enum class Comparison : std::uint8_t { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };
constexpr const char* comparison_names[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                            "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};

template <Comparison c>
struct Compare {
  template <class T>
  static bool apply(T a, T b) {
    const bool unordered = a != a || b != b;
    if constexpr (c == Comparison::eq) return a == b;
    if constexpr (c == Comparison::ne) return !unordered && a != b;
    if constexpr (c == Comparison::lt) return a < b;
    if constexpr (c == Comparison::le) return a <= b;
    if constexpr (c == Comparison::gt) return a > b;
    if constexpr (c == Comparison::ge) return a >= b;
    if constexpr (c == Comparison::equ) return unordered || a == b;
    if constexpr (c == Comparison::neu) return unordered || a != b;
    if constexpr (c == Comparison::ltu) return unordered || a < b;
    if constexpr (c == Comparison::leu) return unordered || a <= b;
    if constexpr (c == Comparison::gtu) return unordered || a > b;
    if constexpr (c == Comparison::geu) return unordered || a >= b;
    if constexpr (c == Comparison::num) return !unordered;
    return unordered;
  }
};

// Bits as numbers.
struct F16Bits {
  std::uint16_t bits;
  float value() const { return float_of_f16(bits); }
};
struct BF16Bits {
  std::uint16_t bits;
  float value() const { return float_of_bf16(bits); }
};
template <class T>
T number(T x) {
  return x;
}
inline float number(F16Bits x) { return x.value(); }
inline float number(BF16Bits x) { return x.value(); }

enum class Combine : std::uint8_t { none, logical_and, logical_or, logical_xor };

// operand: d, a, b, predicate to combine with; list: the second destination. flag: ftz; immediate bit 8: !c.
template <class T, Comparison c>
void setp(Warp& warp, const Instruction& in) {
  const T *a = warp.reg<T>(in.operand[1]), *b = warp.reg<T>(in.operand[2]);
  std::uint32_t value;
  if constexpr (std::is_same_v<T, float>) {
    const bool ftz = in.flag;
    value = ftz ? mask_of(warp, 0, [=](int lane) { return Compare<c>::apply(flushed(a[lane]), flushed(b[lane])); })
                : mask_of(warp, 0, [=](int lane) { return Compare<c>::apply(a[lane], b[lane]); });
  } else {
    value = mask_of(warp, 0, [=](int lane) { return Compare<c>::apply(number(a[lane]), number(b[lane])); });
  }
  std::uint32_t first = value, second = ~value;
  if (in.choice != 0) {
    std::uint32_t other = warp.predicate(in.operand[3]);
    if (in.immediate & 0x100) other = ~other;
    const auto combined = [&](std::uint32_t x) {
      const auto how = static_cast<Combine>(in.choice);
      return how == Combine::logical_and ? x & other : how == Combine::logical_or ? x | other : x ^ other;
    };
    first = combined(value), second = combined(~value);
  }
  std::uint32_t& d = warp.predicate(in.operand[0]);
  d = (first & warp.exec) | (d & ~warp.exec);
  if (in.list) {
    std::uint32_t& e = warp.predicate(in.list[0]);
    e = (second & warp.exec) | (e & ~warp.exec);
  }
}

template <class T, std::size_t... i>
Handler pick(Comparison comparison, std::index_sequence<i...>) {
  constexpr Handler handlers[] = {&setp<T, static_cast<Comparison>(i)>...};
  return handlers[static_cast<int>(comparison)];
}
template <class T>
Handler pick(Comparison comparison) {
  return pick<T>(comparison, std::make_index_sequence<std::size(comparison_names)>());
}

Handler setp_handler(Decoder& decoder, Type type, Comparison comparison) {
  const bool floating = type == Type::f32 || type == Type::f64 || type == Type::f16 || type == Type::bf16;
  if (!floating && comparison > Comparison::ge) decoder.fail("a comparison for floats only");
  switch (type) {
    case Type::s16:
      return pick<std::int16_t>(comparison);
    case Type::u16:
    case Type::b16:
      return pick<std::uint16_t>(comparison);
    case Type::s32:
      return pick<std::int32_t>(comparison);
    case Type::u32:
    case Type::b32:
      return pick<std::uint32_t>(comparison);
    case Type::s64:
      return pick<std::int64_t>(comparison);
    case Type::u64:
    case Type::b64:
      return pick<std::uint64_t>(comparison);
    case Type::f32:
      return pick<float>(comparison);
    case Type::f64:
      return pick<double>(comparison);
    case Type::f16:
      return pick<F16Bits>(comparison);
    case Type::bf16:
      return pick<BF16Bits>(comparison);
    default:
      decoder.fail("not for this type");
  }
}

void decode_setp(Decoder& decoder) {
  Form& form = decoder.form;
  std::string name =
      form.take_one({"eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"});
  if (name.empty()) {  // lo, ls, hi, hs: unsigned
    const std::string other = form.take_one({"lo", "ls", "hi", "hs"});
    name = other == "lo" ? "lt" : other == "ls" ? "le" : other == "hi" ? "gt" : other == "hs" ? "ge" : "";
  }
  const auto found = std::find(std::begin(comparison_names), std::end(comparison_names), name);
  if (found == std::end(comparison_names)) decoder.fail("expected a comparison");
  const std::string combine = form.take_one({"and", "or", "xor"});
  Instruction& in = decoder.instruction;
  in.flag = form.take("ftz");
  const Type type = form.take_type();
  in.type = Class::compare;
  decoder.has(combine.empty() ? 3 : 4);
  in.operand[0] = decoder.destination(0, Type::pred);
  if (const std::uint32_t second = decoder.second_destination(0)) in.list = decoder.list({second});
  for (int i = 1; i <= 2; ++i) in.operand[i] = decoder.source(i, type);
  if (!combine.empty()) {
    in.operand[3] = decoder.source(3, Type::pred);
    if (decoder.operand(3).negated) in.immediate = 0x100;
    const Combine how = combine == "and"  ? Combine::logical_and
                        : combine == "or" ? Combine::logical_or
                                          : Combine::logical_xor;
    in.choice = static_cast<std::uint8_t>(how);
  }
  in.handler = setp_handler(decoder, type, static_cast<Comparison>(found - std::begin(comparison_names)));
}

template <class T>
void selp(Warp& warp, const Instruction& in) {
  T* d = warp.reg<T>(in.operand[0]);
  const T *a = warp.reg<T>(in.operand[1]), *b = warp.reg<T>(in.operand[2]);
  const std::uint32_t chosen = warp.predicate(in.operand[3]) ^ (in.flag ? all_lanes : 0);
  each_lane(warp, d, [=](int lane) { return (chosen >> lane & 1) ? a[lane] : b[lane]; });
}

void decode_selp(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  Instruction& in = decoder.instruction;
  decoder.has(4);
  in.operand[0] = decoder.destination(0, type);
  for (int i = 1; i <= 2; ++i) in.operand[i] = decoder.source(i, type);
  in.operand[3] = decoder.source(3, Type::pred);
  in.flag = decoder.operand(3).negated;
  in.type = Class::compare;
  const int bytes = bytes_of(type);
  if (bytes < 2) decoder.fail("not for this type");
  in.handler = bytes == 2 ? &selp<std::uint16_t> : bytes == 4 ? &selp<std::uint32_t> : &selp<std::uint64_t>;
}

// d = c >= 0 ? a : b
template <class T, class C>
void slct(Warp& warp, const Instruction& in) {
  T* d = warp.reg<T>(in.operand[0]);
  const T *a = warp.reg<T>(in.operand[1]), *b = warp.reg<T>(in.operand[2]);
  const C* c = warp.reg<C>(in.operand[3]);
  each_lane(warp, d, [=](int lane) { return c[lane] >= 0 ? a[lane] : b[lane]; });
}

void decode_slct(Decoder& decoder) {
  const Type type = decoder.form.take_type(), selector = decoder.form.take_type();
  Instruction& in = decoder.instruction;
  if (decoder.form.take("ftz") && selector != Type::f32) decoder.fail("ftz is for f32 only");
  decoder.has(4);
  in.operand[0] = decoder.destination(0, type);
  for (int i = 1; i <= 2; ++i) in.operand[i] = decoder.source(i, type);
  in.operand[3] = decoder.source(3, selector);
  in.type = Class::compare;
  if (selector != Type::s32 && selector != Type::f32) decoder.fail("selects by s32 or f32 only");
  const bool by_float = selector == Type::f32;
  switch (bytes_of(type)) {
    case 2:
      in.handler = by_float ? &slct<std::uint16_t, float> : &slct<std::uint16_t, std::int32_t>;
      break;
    case 4:
      in.handler = by_float ? &slct<std::uint32_t, float> : &slct<std::uint32_t, std::int32_t>;
      break;
    case 8:
      in.handler = by_float ? &slct<std::uint64_t, float> : &slct<std::uint64_t, std::int32_t>;
      break;
    default:
      decoder.fail("not for this type");
  }
}

struct CopySign {  // the sign of a on the size of b
  template <class T>
  static T apply(T a, T b) {
    return std::copysign(b, a);
  }
};

void decode_copysign(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  same_type_operands(decoder, type, 2);
  decoder.instruction.type = type == Type::f64 ? Class::fp64 : Class::fp32;
  if (type != Type::f32 && type != Type::f64) decoder.fail("not for this type");
  decoder.instruction.handler =
      type == Type::f32 ? &binary<CopySign, float, float, float> : &binary<CopySign, double, double, double>;
}

// testp: choice is the first letter of what is asked, 'F' for notanumber's opposite "number".
template <class T>
bool test(T x, std::uint8_t what) {
  switch (what) {
    case 'f':
      return std::isfinite(x);
    case 'i':
      return std::isinf(x);
    case 'u':
      return x == x;
    case 'a':
      return x != x;
    case 'n':
      return std::isnormal(x);
    default:
      return std::fpclassify(x) == FP_SUBNORMAL;
  }
}
template <class T>
void testp(Warp& warp, const Instruction& in) {
  const T* a = warp.reg<T>(in.operand[1]);
  std::uint32_t& d = warp.predicate(in.operand[0]);
  for_lanes(warp.exec,
            [&](int lane) { d = (d & ~(1u << lane)) | static_cast<std::uint32_t>(test(a[lane], in.choice)) << lane; });
}
void decode_testp(Decoder& decoder) {
  const std::string what = decoder.form.take_one({"finite", "infinite", "number", "notanumber", "normal", "subnormal"});
  if (what.empty()) decoder.fail("expected what to test");
  const Type type = decoder.form.take_type();
  if (type != Type::f32 && type != Type::f64) decoder.fail("not for this type");
  decoder.has(2);
  Instruction& in = decoder.instruction;
  in.operand[0] = decoder.destination(0, Type::pred);
  in.operand[1] = decoder.source(1, type);
  in.type = Class::compare;
  in.choice = what == "number" ? 'u' : what == "notanumber" ? 'a' : static_cast<std::uint8_t>(what[0]);
  in.handler = type == Type::f32 ? &testp<float> : &testp<double>;
}

}  // namespace

void add_compare(DecodeTable& table) {
  table["setp"] = decode_setp;
  table["selp"] = decode_selp;
  table["slct"] = decode_slct;
  table["copysign"] = decode_copysign;
  table["testp"] = decode_testp;
}

}  // namespace ptx
