// What this machine's processor can run.
#pragma once

#include <string_view>

namespace bigmodel::cpu {

// Whether the processor and the operating system support every instruction of a CPU target.
bool machine_supports(std::string_view target);

}  // namespace bigmodel::cpu
