// The CPU backend as its callers see it: choose a target, get its kernels. Compiled once, for the baseline.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernel_table.h"

namespace bigmodel::cpu {

// Kernels of the target in use: the one forced by set_target, else by the environment variable BIGMODEL_CPU_TARGET,
// else the best that this machine runs. Throws std::invalid_argument when the variable names no such target.
const KernelTable& kernels();

// Names of the compiled targets that this machine can run, best first.
std::vector<std::string> supported_targets();

// Names of all compiled targets, best first.
std::vector<std::string> compiled_targets();

// Forces a target for the whole process. Throws std::invalid_argument when it is unknown or not supported here.
void set_target(const std::string& name);

}  // namespace bigmodel::cpu
