// The Python module bigmodel_kernels._C: which CPU target runs, and what this build is. Loading it registers the ops
// (library.cpp and the files beside it); its submodule `direct` holds their functions past the dispatcher (direct.h).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/headeronly/version.h>

#include "cpu/cpu.h"
#include "direct.h"
#include "machine_peak.h"
#include "packed_weight.h"
#include "workspace.h"

namespace {

#if defined(BIGMODEL_CUDA)
constexpr bool has_cuda = true;
#else
constexpr bool has_cuda = false;
#endif

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = BIGMODEL_COMPILER;
  info["torch"] = TORCH_VERSION;  // whose headers it was compiled against
  info["torch_stable_abi"] = "2.10";
  info["cpu_targets"] = bigmodel::cpu::compiled_targets();
#if defined(BIGMODEL_CUDA)
  info["cuda_compiler"] = BIGMODEL_CUDA_COMPILER;
  info["cuda_architectures"] = BIGMODEL_CUDA_COMPILED_ARCHS;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Loads the ops of torch.ops.bigmodel and chooses the CPU target that runs them.";
  module.def(
      "cpu_target", [] { return bigmodel::cpu::kernels().target; },
      "Name of the CPU target in use. Raises ValueError if BIGMODEL_CPU_TARGET names none.");
  module.def("set_cpu_target", &bigmodel::cpu::set_target, pybind11::arg("name"),
             "Forces a CPU target for the whole process. Raises ValueError if it is unknown or cannot run here.");
  module.def("supported_cpu_targets", &bigmodel::cpu::supported_targets,
             "CPU targets that this machine runs, best first.");
  module.def("compiled_cpu_targets", &bigmodel::cpu::compiled_targets, "CPU targets of this build, best first.");
  module.def(
      "few_rows",
      [](bool bf16, std::int64_t weight_elements) {
        using bigmodel::DType;
        return bigmodel::binding::few_rows(bf16 ? DType::bfloat16 : DType::float32, weight_elements);
      },
      pybind11::arg("bf16"), pybind11::arg("weight_elements"),
      "So many rows (of bfloat16, or of another dtype) are multiplied by such a weight as it lies.");
  module.attr("LEAST_PACKED_ELEMENTS") = bigmodel::binding::least_packed_elements;
  module.def("has_cuda", [] { return has_cuda; }, "Whether this build has CUDA kernels.");
  module.def("build_info", &build_info, "Compiler, torch headers, stable ABI version and CPU targets of this build.");
  module.def("release_workspace", &bigmodel::binding::release_workspace,
             "Gives the memory that CPU kernels keep from call to call, at most 64 MiB, back to the system.");
  bigmodel::define_machine_peak(module);
  bigmodel::binding::direct::define(
      module
          .def_submodule("direct",
                         "The ops of torch.ops.bigmodel by the same names, called past torch's dispatcher: plain CPU "
                         "tensors only, all arguments given. Empty where this torch lacks what that needs.")
          .ptr());
}
