// The machine's measured ceilings, for benchmarks to divide by.
#pragma once

#include <pybind11/pybind11.h>

namespace bigmodel {

// Adds fma_peak_flops, bf16_dot_peak_flops and int8_dot_peak_ops (threads, seconds), and read_bandwidth(threads, bytes,
// seconds) to the module.
void define_machine_peak(pybind11::module_& module);

}  // namespace bigmodel
