// Linked in place of csrc/cpu/features.cpp where instructions are emulated: every compiled target runs.
#include "cpu/features.h"

namespace bigmodel::cpu {

bool machine_supports(std::string_view) { return true; }

}  // namespace bigmodel::cpu
