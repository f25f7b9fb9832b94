// f32 and f64 arithmetic rounded towards zero, down or up.
#pragma once

#include <string>

#include "decoder.h"
#include "floats.h"

namespace ptx {

void decode_directed(Decoder& decoder, const std::string& base, Type type, const std::string& rounding, bool ftz,
                     bool sat);

// While it lives, the processor rounds so.
class RoundingScope {
 public:
  explicit RoundingScope(Rounding mode);
  ~RoundingScope();
  RoundingScope(const RoundingScope&) = delete;
  RoundingScope& operator=(const RoundingScope&) = delete;

 private:
  int before_;
};
Rounding rounding_named(char letter);  // n, z, m, p

double round_to_integral(double x, Rounding mode);
float convert_to_float(double x, Rounding mode);
float convert_to_float(std::int64_t x, Rounding mode);
float convert_to_float(std::uint64_t x, Rounding mode);
double convert_to_double(std::int64_t x, Rounding mode);
double convert_to_double(std::uint64_t x, Rounding mode);

}  // namespace ptx
