// Compiled with -frounding-math: arithmetic here is not moved across changes of the rounding mode.
#include "rounding.h"

#include <cfenv>

#include "lanes.h"

namespace ptx {
namespace {

int mode_of(Rounding mode) {
  switch (mode) {
    case Rounding::zero:
      return FE_TOWARDZERO;
    case Rounding::down:
      return FE_DOWNWARD;
    case Rounding::up:
      return FE_UPWARD;
    default:
      return FE_TONEAREST;
  }
}

template <class T>
T compute(char operation, T a, T b, T c) {
  switch (operation) {
    case 'a':
      return a + b;
    case 's':
      return a - b;
    case 'm':
      return a * b;
    case 'd':
      return a / b;
    default:
      return std::fma(a, b, c);
  }
}

// choice: the operation; immediate: rounding, ftz (bit 8), sat (bit 9).
template <class T>
void directed(Warp& warp, const Instruction& in) {
  const RoundingScope scope(static_cast<Rounding>(in.immediate & 0xff));
  const bool ftz = in.immediate & 0x100, sat = in.immediate & 0x200;
  T* d = warp.reg<T>(in.operand[0]);
  const T *a = warp.reg<T>(in.operand[1]), *b = warp.reg<T>(in.operand[2]), *c = warp.reg<T>(in.operand[3]);
  for_lanes(warp.exec, [&](int lane) {
    volatile T x = a[lane], y = b[lane], z = c[lane];
    if constexpr (sizeof(T) == 4) {
      if (ftz) {
        x = flushed(x);
        y = flushed(y);
        z = flushed(z);
      }
    }
    volatile T result = compute<T>(static_cast<char>(in.choice), x, y, z);
    if (sat) result = saturated<T>(result);
    if constexpr (sizeof(T) == 4) {
      if (ftz) result = flushed(result);
    }
    d[lane] = canonical(static_cast<T>(result));
  });
}

template <class To, class From>
To converted(From x, Rounding mode) {
  const RoundingScope scope(mode);
  volatile From from = x;
  volatile To to = static_cast<To>(from);
  return to;
}

}  // namespace

RoundingScope::RoundingScope(Rounding mode) : before_(std::fegetround()) { std::fesetround(mode_of(mode)); }
RoundingScope::~RoundingScope() { std::fesetround(before_); }

Rounding rounding_named(char letter) {
  switch (letter) {
    case 'z':
      return Rounding::zero;
    case 'm':
      return Rounding::down;
    case 'p':
      return Rounding::up;
    default:
      return Rounding::nearest;
  }
}

void decode_directed(Decoder& decoder, const std::string& base, Type type, const std::string& rounding, bool ftz,
                     bool sat) {
  decoder.instruction.choice = static_cast<std::uint8_t>(base == "mad" ? 'f' : base[0]);
  decoder.instruction.immediate = static_cast<int>(rounding_named(rounding[1])) | (ftz ? 0x100 : 0) | (sat ? 0x200 : 0);
  if (decoder.instruction.operand[3] == 0) decoder.instruction.operand[3] = decoder.constant(0, bytes_of(type));
  decoder.instruction.handler = type == Type::f64 ? &directed<double> : &directed<float>;
}

double round_to_integral(double x, Rounding mode) {
  const RoundingScope scope(mode);
  volatile double from = x;
  return std::nearbyint(from);
}
float convert_to_float(double x, Rounding mode) { return converted<float>(x, mode); }
float convert_to_float(std::int64_t x, Rounding mode) { return converted<float>(x, mode); }
float convert_to_float(std::uint64_t x, Rounding mode) { return converted<float>(x, mode); }
double convert_to_double(std::int64_t x, Rounding mode) { return converted<double>(x, mode); }
double convert_to_double(std::uint64_t x, Rounding mode) { return converted<double>(x, mode); }

}  // namespace ptx
