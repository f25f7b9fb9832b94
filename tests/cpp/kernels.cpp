// Every kernel family against naive loops in double, on every CPU target that this processor runs.
#include "tensors.h"

int main() {
  using namespace bigmodel;
  for (const std::string& target : cpu::supported_targets()) {
    const test::Counts before = test::counts;
    cpu::set_target(target);
    test::test_add_norm();
    test::test_linear();
    test::test_feed_forward();
    test::test_attention();
    test::test_attention_varlen();
    test::test_rotary();
    test::test_linear_cross_entropy();
    test::test_attention_decode();
    std::printf("%s: %ld checks, %ld failed\n", target.c_str(), test::counts.checks - before.checks,
                test::counts.failures - before.failures);
    std::fflush(stdout);
  }
  return test::finish("kernels");
}
