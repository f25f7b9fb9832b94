// The pieces in csrc/cpu/isa of one CPU target. Compiled for any processor, so that it can say that this one will not
// do.
#include "vocabulary.h"

#include "check.h"
#include "cpu/features.h"

#define NAME_OF(name) #name
#define TARGET_NAME(name) NAME_OF(name)

int main() {
  const char* name = TARGET_NAME(BIGMODEL_TARGET);
  if (!bigmodel::cpu::machine_supports(name)) {
    std::printf("skipped: this processor lacks the instructions of %s (make test-isa emulates them)\n", name);
    return bigmodel::test::skipped_status;
  }
  bigmodel::cpu::BIGMODEL_TARGET::test_vectors();
  bigmodel::cpu::BIGMODEL_TARGET::test_math();
  bigmodel::cpu::BIGMODEL_TARGET::test_products();
  return bigmodel::test::finish(name);
}
