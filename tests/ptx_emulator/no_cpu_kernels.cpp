// The binding compiled for the emulator links against no CPU kernels, and calls none.
#include "cpu/cpu.h"

namespace bigmodel::cpu {

const KernelTable& kernels() {
  static constexpr KernelTable none{};
  return none;
}

}  // namespace bigmodel::cpu
