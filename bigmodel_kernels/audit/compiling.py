"""Ahead-of-time compilation of one kernel, for an architecture that need not be here."""

from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..triton.audit_case import AuditCase
from .machine_code import MachineCode, read_machine_code

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_WARP = 32


@dataclass(frozen=True)
class Compiled:
    code: MachineCode
    dynamic_shared_bytes: int


def compile_case(case: AuditCase, capability: int) -> Compiled:
    attributes = {path: [["tt.divisibility", 16]] for path in case.divisible_by_16}
    source = ASTSource(case.kernel, case.signature, case.constexprs, attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True}
    if case.max_registers is not None:
        options["maxnreg"] = case.max_registers
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, _WARP), options=options)
    by_thread = case.inner_products / (_WARP * case.num_warps)
    return Compiled(read_machine_code(kernel.asm["cubin"], _TOOLS, by_thread), kernel.metadata.shared)
