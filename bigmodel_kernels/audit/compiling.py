"""Ahead-of-time compilation of one kernel, for an architecture that need not be here."""

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..triton.audit_case import AuditCase
from . import nvcc
from .architectures import BY_CAPABILITY
from .cuda_cases import CudaCase
from .limiter import hmma_expected, mma_expected
from .machine_code import MachineCode, read_kernels, read_machine_code

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_WARP = 32


@dataclass(frozen=True)
class Compiled:
    code: MachineCode
    dynamic_shared_bytes: int


def compile_case(case: AuditCase | CudaCase, capability: int) -> Compiled:
    """Raises: ValueError where the compiler fails, or a CUDA source does not have the kernel."""
    return _compile_cuda(case, capability) if isinstance(case, CudaCase) else _compile_triton(case, capability)


def _compile_cuda(case: CudaCase, capability: int) -> Compiled:
    inner = hmma_expected(case, BY_CAPABILITY[capability], case.inner_products)
    kernels = _kernels(nvcc.compiled(case.source, capability), inner)
    found = [code for name, code in kernels.items() if re.search(case.kernel, name)]
    if len(found) != 1:
        raise ValueError(f"[audit] {case.source}.cu has {len(found)} kernels that match {case.kernel}; expected one")
    return Compiled(found[0], case.shared_bytes)


@functools.cache
def _kernels(cubin: Path, inner_products: float) -> dict[str, MachineCode]:
    return read_kernels(cubin.read_bytes(), _TOOLS, inner_products)


def _compile_triton(case: AuditCase, capability: int) -> Compiled:
    attributes = {path: [["tt.divisibility", 16]] for path in case.divisible_by_16}
    source = ASTSource(case.kernel, case.signature, case.constexprs, attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True}
    if case.max_registers is not None:
        options["maxnreg"] = case.max_registers
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, _WARP), options=options)
    inner = case.inner_products / (_WARP * case.num_warps)  # multiply-adds of a thread
    if inner and case.dtype != "fp32" and capability >= 80:
        architecture = BY_CAPABILITY[capability]
        inner = mma_expected(replace(case, dots=case.dots[:1]), architecture, architecture.mma)
    return Compiled(read_machine_code(kernel.asm["cubin"], _TOOLS, inner), kernel.metadata.shared)
