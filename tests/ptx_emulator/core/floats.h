// Floating point as PTX has it: flushing, canonical NaNs, and the 16-bit formats.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace ptx {

inline std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
inline float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }

// .ftz: subnormal numbers become zeros of their sign.
inline float flushed(float x) {
  const std::uint32_t bits = bits_of(x);
  return float_of((bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits);
}
// The NaN that operations on f32 return.
inline float canonical(float x) { return x == x ? x : float_of(0x7fffffffu); }
inline double canonical(double x) { return x; }
// .sat: to [0, 1], NaN to 0.
template <class T>
inline T saturated(T x) {
  const T low = x > 0 ? x : T(0);
  return low < 1 ? low : T(1);
}

enum class Rounding : std::uint8_t { nearest, zero, down, up, nearest_away };

// A binary format narrower than double.
struct Format {
  int mantissa_bits, exponent_bits;

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  std::uint32_t infinity() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }
};
inline constexpr Format f16_format{10, 5}, bf16_format{7, 8}, tf32_format{10, 8}, f32_format{23, 8};

// Rounds to the format once; returns its bits. NaNs become `nan`.
inline std::uint32_t rounded_bits(double x, const Format& format, Rounding mode, std::uint32_t nan) {
  if (x != x) return nan;
  const std::uint32_t sign = (std::signbit(x) ? 1u : 0u) << (format.mantissa_bits + format.exponent_bits);
  const double size = std::fabs(x);
  if (size == 0) return sign;
  const std::uint32_t infinity = format.infinity();
  if (std::isinf(size)) return sign | infinity;
  const int lowest = 1 - format.bias();
  const int exponent = std::max(std::ilogb(size), lowest);
  const double units = std::ldexp(size, format.mantissa_bits - exponent);
  double whole = std::floor(units);
  const double rest = units - whole;
  const bool away = mode == Rounding::up ? sign == 0 : mode == Rounding::down ? sign != 0 : false;
  if (mode == Rounding::nearest) {
    whole += rest > 0.5 || (rest == 0.5 && std::fmod(whole, 2) != 0);
  } else if (mode == Rounding::nearest_away) {
    whole += rest >= 0.5;
  } else if (away) {
    whole += rest > 0;
  }
  const auto count = static_cast<std::uint64_t>(whole);  // carries into the exponent by itself
  const std::uint64_t base = static_cast<std::uint64_t>(exponent - lowest) << format.mantissa_bits;
  const std::uint64_t bits = base + count;
  if (bits < infinity) return sign | static_cast<std::uint32_t>(bits);
  const bool stays_finite = mode == Rounding::zero || (!away && (mode == Rounding::up || mode == Rounding::down));
  return sign | (stays_finite ? infinity - 1 : infinity);
}

// a + b rounded to odd: rounding the result once more, to a much narrower format, is then as if done at once.
inline double odd_sum(double a, double b) {
  const double sum = a + b;
  if (!std::isfinite(sum)) return sum;
  const double b_part = sum - a;
  const double error = (a - (sum - b_part)) + (b - b_part);
  if (error == 0 || (std::bit_cast<std::uint64_t>(sum) & 1)) return sum;
  return std::nextafter(sum, (error > 0) ? HUGE_VAL : -HUGE_VAL);
}

inline float float_of_bf16(std::uint16_t bits) { return float_of(static_cast<std::uint32_t>(bits) << 16); }
inline float float_of_f16(std::uint16_t bits) {
  const std::uint32_t magnitude = (bits & 0x7fffu) << 13;
  const float scaled = float_of(magnitude) * 0x1p112f;  // exact, subnormals too
  const std::uint32_t special = (bits & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : bits_of(scaled);
  return float_of(special | (bits & 0x8000u) << 16);
}

// To nearest, NaN to PTX's canonical ones.
inline std::uint16_t bf16_of(float x) {
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  return static_cast<std::uint16_t>(x == x ? rounded : 0x7fffu);
}
inline std::uint16_t f16_of(float x) {
  const std::uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  // Normal results: round the mantissa in place. Subnormal ones: let an addition round at the right bit.
  const std::uint32_t normal = (size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13;
  const std::uint32_t subnormal = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
  std::uint32_t result = size < 0x38800000u ? subnormal : normal;
  result = size >= 0x47800000u ? 0x7c00u : result;  // 65536 and more; what rounds to it has carried already
  result = size > 0x7f800000u ? 0x7fffu : result;
  return static_cast<std::uint16_t>(size > 0x7f800000u ? result : result | sign);
}

}  // namespace ptx
