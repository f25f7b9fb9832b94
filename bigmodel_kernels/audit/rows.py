"""The rows of the audit: each default kernel on each architecture, with what its machine code shows."""

import importlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from .architectures import BY_CAPABILITY, blocks_per_multiprocessor

# The modules of `triton/` that offer audit_cases(arch).
_FAMILIES = ("attention_audit", "layers_audit")
OPS = ("attention", "attention_weights", "linear", "feed_forward", "add_norm")
DTYPES = ("fp32", "bf16", "fp16")
ARCHITECTURES = tuple(each.name for each in BY_CAPABILITY.values())
_L2_REUSE = 8  # how many blocks that run at once share an operand that memory delivered: the launches' group_m


@dataclass(frozen=True)
class Row:
    """One kernel on one architecture; all of it predicted from the machine code."""

    op: str
    kernel: str
    backend: str
    arch: str
    dtype: str
    head_dim: int | None
    warps: int
    registers: int
    spills: int  # instructions that move registers to or from local memory
    static_shared: int  # bytes
    dynamic_shared: int
    blocks_per_multiprocessor: int
    blocks_limited_by: str
    mma: dict[str, int]  # tensor-core instructions in the code, by name
    mma_expected: float  # how many one iteration of the inner loop needs; the code holds it once or more
    global_loads: dict[str, int]  # instructions by width in bits
    bulk_loads: int
    exps: int
    instructions: int
    limiter: str
    clocks: dict[str, float]  # of an iteration, by unit: the arithmetic behind the limiter
    predicted: bool = True

    def as_dict(self) -> dict:
        return asdict(self)


def cases(arch: str, ops: tuple[str, ...] = OPS, dtypes: tuple[str, ...] = DTYPES) -> list:
    """The default kernels on an architecture. Raises: ValueError for an unknown name, or without a compiler."""
    for kind, names, known in (("architecture", (arch,), ARCHITECTURES), ("op", ops, OPS), ("dtype", dtypes, DTYPES)):
        for name in names:
            if name not in known:
                raise ValueError(f"[audit] '{name}' is no {kind} that is known; expected one of {', '.join(known)}")
    _check_triton()
    found = []
    for module in _FAMILIES:
        if importlib.util.find_spec(f"bigmodel_kernels.triton.{module}") is not None:
            family = importlib.import_module(f"bigmodel_kernels.triton.{module}")
            found += family.audit_cases(int(arch.removeprefix("sm_")))
    return [case for case in found if case.op in ops and case.dtype in dtypes]


def audit(arch: str, selected: list) -> Iterator[Row]:
    """Compiles the cases for an architecture, one row each."""
    from .compiling import compile_case
    from .limiter import mma_expected, predict

    capability = int(arch.removeprefix("sm_"))
    architecture = BY_CAPABILITY[capability]
    for case in selected:
        compiled = compile_case(case, capability)
        code = compiled.code
        shared = code.static_shared_bytes + compiled.dynamic_shared_bytes
        blocks, limited_by = blocks_per_multiprocessor(architecture, case.num_warps, code.registers, shared)
        prediction = predict(case, architecture, code, _L2_REUSE)
        yield Row(
            op=case.op,
            kernel=case.name,
            backend="triton",
            arch=arch,
            dtype=case.dtype,
            head_dim=case.head_dim,
            warps=case.num_warps,
            registers=code.registers,
            spills=code.spill_instructions,
            static_shared=code.static_shared_bytes,
            dynamic_shared=compiled.dynamic_shared_bytes,
            blocks_per_multiprocessor=blocks,
            blocks_limited_by=limited_by,
            mma=code.mma,
            mma_expected=mma_expected(case, architecture),
            global_loads={str(8 * width): count for width, count in code.global_loads.items()},
            bulk_loads=code.bulk_loads,
            exps=code.exps,
            instructions=code.instructions,
            limiter=prediction.limiter,
            clocks={unit: round(value, 1) for unit, value in prediction.clocks.items()},
        )


def _check_triton() -> None:
    if importlib.util.find_spec("triton") is None:
        raise ValueError("[audit] the package triton, which compiles the kernels, is not installed")
    if os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes"):
        raise ValueError("[audit] TRITON_INTERPRET is set, and interpreted kernels have no machine code; unset it")
