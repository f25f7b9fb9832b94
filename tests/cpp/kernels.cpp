// Every kernel family against naive loops in double: `kernels TARGET`, or on all CPU targets that this processor runs.
#include "tensors.h"

namespace bigmodel::test {

static void test_target(const std::string& target) {
  const Counts before = counts;
  cpu::set_target(target);
  test_add_norm();
  test_linear();
  test_feed_forward();
  test_attention();
  test_attention_varlen();
  test_rotary();
  test_linear_cross_entropy();
  test_attention_decode();
  std::printf("%s: %ld checks, %ld failed\n", target.c_str(), counts.checks - before.checks,
              counts.failures - before.failures);
  std::fflush(stdout);
}

}  // namespace bigmodel::test

int main(int argument_count, char** arguments) {
  using namespace bigmodel;
  const std::string wanted = argument_count > 1 ? arguments[1] : "";
  bool ran = false;
  for (const std::string& target : cpu::supported_targets()) {
    if (!wanted.empty() && target != wanted) continue;
    test::test_target(target);
    ran = true;
  }
  if (!ran) {
    std::printf("skipped: this processor lacks the instructions of %s (make test-isa emulates them)\n", wanted.c_str());
    return test::skipped_status;
  }
  return test::finish("kernels");
}
