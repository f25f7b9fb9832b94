// Number formats as the tests define them, independently of csrc: by their value, not by their bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "bigmodel/dtype.h"

namespace bigmodel::test {

inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The value of a 16-bit format with `fraction` bits of fraction and a bias of the exponent.
inline double value_of_bits(std::uint16_t bits, int fraction, int bias) {
  const int exponent_bits = 15 - fraction, exponent = bits >> fraction & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << fraction) - 1);
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - fraction);
  return sign * std::ldexp(mantissa + (1 << fraction), exponent - bias - fraction);
}
inline double value_of(float x) { return x; }
inline double value_of(bfloat16 x) { return value_of_bits(x.bits, 7, 127); }
inline double value_of(float16 x) { return value_of_bits(x.bits, 10, 15); }

// The nearest number of the format, ties to even: by the definition, at the precision of x's binade.
inline double rounded(double x, int fraction, int least_exponent, double largest) {
  if (x == 0.0 || !std::isfinite(x)) return x;
  int exponent;
  std::frexp(x, &exponent);
  const int unit = (exponent - 1 < least_exponent ? least_exponent : exponent - 1) - fraction;
  const double y = std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
  return std::fabs(y) > largest ? std::copysign(INFINITY, x) : y;
}

// Distance from 1 to the next number; dtype and name.
template <class T>
struct Format;
template <>
struct Format<float> {
  static constexpr double epsilon = 0x1p-23;
  static constexpr DType dtype = DType::float32;
  static constexpr const char* name = "float32";
  static double round(double x) { return static_cast<float>(x); }
};
template <>
struct Format<bfloat16> {
  static constexpr double epsilon = 0x1p-7;
  static constexpr DType dtype = DType::bfloat16;
  static constexpr const char* name = "bfloat16";
  static double round(double x) { return rounded(x, 7, -126, 0x1.fep127); }
};
template <>
struct Format<float16> {
  static constexpr double epsilon = 0x1p-10;
  static constexpr DType dtype = DType::float16;
  static constexpr const char* name = "float16";
  static double round(double x) { return rounded(x, 10, -14, 65504.0); }
};

// Writes a value that the format holds exactly or nearly: what tests fill their inputs with.
inline void assign(float& to, double x) { to = static_cast<float>(x); }
inline void assign(bfloat16& to, double x) {
  const float y = static_cast<float>(Format<bfloat16>::round(x));
  std::uint32_t bits;
  std::memcpy(&bits, &y, sizeof bits);
  to.bits = static_cast<std::uint16_t>(bits >> 16);
}
inline void assign(float16& to, double x) {
  const double y = Format<float16>::round(x), size = std::fabs(y);
  int exponent;
  std::frexp(size, &exponent);
  const std::uint16_t sign = std::signbit(y) ? 0x8000 : 0;
  if (std::isinf(size)) {
    to.bits = static_cast<std::uint16_t>(sign | 0x7c00);
  } else if (size < 0x1p-14) {
    to.bits = static_cast<std::uint16_t>(sign | static_cast<int>(size * 0x1p24));
  } else {
    const int mantissa = static_cast<int>(std::ldexp(size, 11 - exponent));  // 1024 to 2047
    to.bits = static_cast<std::uint16_t>(sign | (((exponent - 1 + 15) << 10) + mantissa - 1024));
  }
}

// A small deterministic generator: the same numbers on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 2 + 1) {}

  std::uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>(state_ >> 32);
  }
  double uniform(double low, double high) { return low + (high - low) * next() * 0x1p-32; }
  // Roughly normal, of deviation 1.
  double normal() { return (uniform(-1, 1) + uniform(-1, 1) + uniform(-1, 1)); }

 private:
  std::uint64_t state_;
};

}  // namespace bigmodel::test
