// The test harness: checks that count, print what failed, and decide the exit status.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace bigmodel::test {

inline constexpr int most_printed = 20;
inline constexpr int skipped_status = 77;  // as tests/cpp/CMakeLists.txt tells ctest

struct Counts {
  long checks = 0, failures = 0;
};
inline Counts counts;

__attribute__((format(printf, 2, 3))) inline void check(bool good, const char* format, ...) {
  ++counts.checks;
  if (good) return;
  if (++counts.failures > most_printed) return;
  std::va_list arguments;
  va_start(arguments, format);
  std::printf("FAILED: ");
  std::vprintf(format, arguments);
  std::printf("\n");
  va_end(arguments);
}

// got must lie within `bound` of want; infinities must be equal and NaN must be NaN.
__attribute__((format(printf, 4, 5))) inline void check_close(double got, double want, double bound, const char* format,
                                                              ...) {
  ++counts.checks;
  if (std::isnan(want) ? std::isnan(got) : std::isinf(want) ? got == want : std::fabs(got - want) <= bound) return;
  if (++counts.failures > most_printed) return;
  std::va_list arguments;
  va_start(arguments, format);
  std::printf("FAILED: ");
  std::vprintf(format, arguments);
  std::printf(": got %.9g, want %.9g within %.3g\n", got, want, bound);
  va_end(arguments);
}

// The exit status; a run without a single check fails too.
inline int finish(const char* name) {
  if (counts.checks == 0) std::printf("FAILED: %s checked nothing\n", name);
  std::printf("%s: %ld checks, %ld failed\n", name, counts.checks, counts.failures);
  return counts.failures > 0 || counts.checks == 0;
}

}  // namespace bigmodel::test
