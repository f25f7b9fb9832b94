// Arithmetic on f16 and bf16, alone or in pairs. Each result is rounded once.
#include <algorithm>

#include "arithmetic.h"
#include "floats.h"
#include "lanes.h"

namespace ptx {
namespace {

struct F16 {
  static constexpr Format format = f16_format;
  static double value(std::uint16_t bits) { return float_of_f16(bits); }
};
struct BF16 {
  static constexpr Format format = bf16_format;
  static double value(std::uint16_t bits) { return float_of_bf16(bits); }
};

enum class Operation : std::uint8_t { add, sub, mul, fma, min, max, min_nan, max_nan, abs, neg };

constexpr std::uint16_t canonical_nan = 0x7fff;

// A modifier each of the instruction.
struct Modifiers {
  bool ftz, sat, relu;
};

template <class H>
bool is_nan(std::uint16_t x) {
  return (x & 0x7fff) > H::format.infinity();
}

template <class H>
std::uint16_t flush(std::uint16_t x) {
  return (x & H::format.infinity()) == 0 ? x & 0x8000 : x;
}

template <class H>
std::uint16_t extreme(std::uint16_t a, std::uint16_t b, bool largest, bool nan_wins) {
  if (is_nan<H>(a) || is_nan<H>(b)) {
    if (nan_wins || (is_nan<H>(a) && is_nan<H>(b))) return canonical_nan;
    return is_nan<H>(a) ? b : a;
  }
  const auto order = [](std::uint16_t x) { return x & 0x8000 ? -(x & 0x7fff) * 2 - 1 : (x & 0x7fff) * 2; };
  return (order(a) < order(b)) == largest ? b : a;
}

template <class H>
std::uint16_t arithmetic(Operation operation, std::uint16_t a, std::uint16_t b, std::uint16_t c, const Modifiers& m) {
  const double x = H::value(a), y = H::value(b), z = H::value(c);
  double exact = 0;
  switch (operation) {
    case Operation::add:
      exact = odd_sum(x, y);
      break;
    case Operation::sub:
      exact = odd_sum(x, -y);
      break;
    case Operation::mul:
      exact = x * y;
      break;
    default:
      exact = odd_sum(x * y, z);
      break;
  }
  auto result = static_cast<std::uint16_t>(rounded_bits(exact, H::format, Rounding::nearest, canonical_nan));
  if (m.sat) {
    if (is_nan<H>(result) || (result & 0x8000)) result = 0;
    result = std::min<std::uint16_t>(result, static_cast<std::uint16_t>(H::format.bias() << H::format.mantissa_bits));
  }
  if (m.relu && !is_nan<H>(result) && (result & 0x8000)) result = 0;
  return result;
}

template <class H>
std::uint16_t apply(Operation operation, std::uint16_t a, std::uint16_t b, std::uint16_t c, const Modifiers& m) {
  if (m.ftz) a = flush<H>(a), b = flush<H>(b), c = flush<H>(c);
  std::uint16_t result;
  switch (operation) {
    case Operation::min:
      result = extreme<H>(a, b, false, false);
      break;
    case Operation::max:
      result = extreme<H>(a, b, true, false);
      break;
    case Operation::min_nan:
      result = extreme<H>(a, b, false, true);
      break;
    case Operation::max_nan:
      result = extreme<H>(a, b, true, true);
      break;
    case Operation::abs:
      result = a & 0x7fff;
      break;
    case Operation::neg:
      result = a ^ 0x8000;
      break;
    default:
      result = arithmetic<H>(operation, a, b, c, m);
  }
  return m.ftz ? flush<H>(result) : result;
}

// choice: the operation; immediate: the modifiers; flag: pairs.
template <class H>
void half_arithmetic(Warp& warp, const Instruction& in) {
  const Modifiers modifiers{(in.immediate & 1) != 0, (in.immediate & 2) != 0, (in.immediate & 4) != 0};
  const int each = in.flag ? 2 : 1;
  std::uint16_t* d = warp.reg<std::uint16_t>(in.operand[0]);
  const std::uint16_t* a = warp.reg<std::uint16_t>(in.operand[1]);
  const std::uint16_t* b = in.operand[2] ? warp.reg<std::uint16_t>(in.operand[2]) : a;
  const std::uint16_t* c = in.operand[3] ? warp.reg<std::uint16_t>(in.operand[3]) : a;
  const auto operation = static_cast<Operation>(in.choice);
  for_lanes(warp.exec, [&](int lane) {
    for (int i = each * lane; i < each * (lane + 1); ++i) d[i] = apply<H>(operation, a[i], b[i], c[i], modifiers);
  });
}

}  // namespace

void decode_half(Decoder& decoder, Type type) {
  Form& form = decoder.form;
  form.take_type();
  const std::string base = form.base();
  form.take("rn");
  const bool nan_wins = form.take("NaN");
  const bool ftz = form.take("ftz"), sat = form.take("sat"), relu = form.take("relu");
  struct Named {
    const char* name;
    Operation operation;
    int sources;
  };
  const Named operations[] = {{"add", Operation::add, 2},
                              {"sub", Operation::sub, 2},
                              {"mul", Operation::mul, 2},
                              {"fma", Operation::fma, 3},
                              {"abs", Operation::abs, 1},
                              {"neg", Operation::neg, 1},
                              {"min", nan_wins ? Operation::min_nan : Operation::min, 2},
                              {"max", nan_wins ? Operation::max_nan : Operation::max, 2}};
  const auto found =
      std::find_if(std::begin(operations), std::end(operations), [&](const Named& each) { return each.name == base; });
  if (found == std::end(operations)) decoder.fail("not for this type");
  same_type_operands(decoder, type, found->sources);
  decoder.instruction.type = Class::half;
  decoder.instruction.choice = static_cast<std::uint8_t>(found->operation);
  decoder.instruction.immediate = ftz | sat << 1 | relu << 2;
  decoder.instruction.flag = type == Type::f16x2 || type == Type::bf16x2;
  const bool brain = type == Type::bf16 || type == Type::bf16x2;
  decoder.instruction.handler = brain ? &half_arithmetic<BF16> : &half_arithmetic<F16>;
}

void add_half(DecodeTable&) {}

}  // namespace ptx
