// Errors of the emulator itself (text it cannot read, an instruction it does not know, a launch that cannot be): they
// end the launch. What a kernel does wrong is a Hazard (hazards.h), and the launch goes on where it can.
#pragma once

#include <stdexcept>
#include <string>

namespace ptx {

struct Error : std::runtime_error {
  explicit Error(const std::string& message) : std::runtime_error("[ptx_emulator] " + message) {}
};

}  // namespace ptx
