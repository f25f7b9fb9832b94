"""The rows of the audit: each default kernel on each architecture, with what its machine code shows."""

import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..interpreter import interpreted
from . import cuda_cases, nvcc
from .architectures import BY_CAPABILITY, Architecture, blocks_per_multiprocessor

# The modules of `triton/` that offer audit_cases(arch).
_FAMILIES = ("attention_audit", "layers_audit", "generation_audit")
BACKENDS = ("triton", "cuda")
OPS = (
    "attention",
    "attention_weights",
    "attention_varlen",
    "attention_decode",
    "linear",
    "feed_forward",
    "add_norm",
    "rotary",
    "linear_cross_entropy",
)
DTYPES = ("fp32", "tf32", "bf16", "fp16")
ARCHITECTURES = tuple(each.name for each in BY_CAPABILITY.values())


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
    stack: int  # bytes of local memory per thread
    static_shared: int  # bytes
    dynamic_shared: int
    blocks_per_multiprocessor: int
    blocks_limited_by: str
    mma: dict[str, int]  # tensor-core instructions in the code, by name
    mma_expected: float  # how many one iteration of the inner loop needs; the code holds it once or more
    loop_mma: int  # those in the inner loop over whole tiles; 0 where there is none
    mma_share: float | None  # of that loop's instructions, those that multiply (fp32: ordinary multiply-adds)
    global_loads: dict[str, int]  # instructions by width in bits
    bulk_loads: int
    atomics: int
    exps: int
    exps_per_score: float | None  # of attention: the exponentials that an iteration executes for each of its scores
    instructions: int
    limiter: str
    clocks: dict[str, float]  # of an iteration, by unit
    arithmetic: dict[str, str]  # how these follow, by unit
    predicted: bool = True

    def as_dict(self) -> dict:
        return asdict(self)


def cases(
    arch: str,
    ops: tuple[str, ...] = OPS,
    dtypes: tuple[str, ...] = DTYPES,
    every: bool = False,
    backends: tuple[str, ...] = ("triton",),
) -> list:
    """The default kernels on an architecture. every: also those whose code hardly differs from that of another, as
    another dtype of 16 bits makes it. Raises: ValueError for an unknown name, or without a backend's compiler."""
    for kind, names, known in (
        ("architecture", (arch,), ARCHITECTURES),
        ("op", ops, OPS),
        ("dtype", dtypes, DTYPES),
        ("backend", backends, BACKENDS),
    ):
        for name in names:
            if name not in known:
                raise ValueError(f"[audit] '{name}' is no {kind} that is known; expected one of {', '.join(known)}")
    found = []
    for backend in backends:
        problems = reasons(backend)
        if problems:
            raise ValueError(f"[audit] backend '{backend}': {'; '.join(problems)}")
        capability = int(arch.removeprefix("sm_"))
        found += cuda_cases.audit_cases(capability, every) if backend == "cuda" else _triton_cases(capability, every)
    return [case for case in found if case.op in ops and case.dtype in dtypes]


def reasons(backend: str) -> list[str]:
    """Why a backend's kernels cannot be audited here; empty where they can. Both need Triton: its package brings
    the disassembler."""
    found = []
    if importlib.util.find_spec("triton") is None:
        what = "compiles the kernels" if backend == "triton" else "brings the disassembler"
        found.append(f"the package triton, which {what}, is not installed")
    if interpreted():
        found.append("TRITON_INTERPRET is set, and interpreted kernels have no machine code; unset it")
    return found + (nvcc.reasons() if backend == "cuda" else [])


def _triton_cases(capability: int, every: bool) -> list:
    found = []
    for module in _FAMILIES:
        if importlib.util.find_spec(f"bigmodel_kernels.triton.{module}") is not None:
            family = importlib.import_module(f"bigmodel_kernels.triton.{module}")
            found += family.audit_cases(capability, every)
    return found


def audit(arch: str, selected: list) -> Iterator[Row]:
    """Compiles the cases for an architecture, one row each."""
    from .compiling import compile_case

    capability = int(arch.removeprefix("sm_"))
    for case in selected:
        yield row_of(case, BY_CAPABILITY[capability], compile_case(case, capability))


def row_of(case: Any, architecture: Architecture, compiled: Any) -> Row:
    """What the compiled case shows."""
    from .limiter import mma_expected, mma_kind, predict

    code = compiled.code
    loop = code.loop if case.dots else None
    shared = code.static_shared_bytes + compiled.dynamic_shared_bytes
    blocks, limited_by = blocks_per_multiprocessor(architecture, case.num_warps, code.registers, shared)
    prediction = predict(case, architecture, code)
    per_score = prediction.exps_per_score
    return Row(
        op=case.op,
        kernel=case.name,
        backend="cuda" if isinstance(case, cuda_cases.CudaCase) else "triton",
        arch=architecture.name,
        dtype=case.dtype,
        head_dim=case.head_dim,
        warps=case.num_warps,
        registers=code.registers,
        spills=code.spill_instructions,
        stack=code.stack_bytes,
        static_shared=code.static_shared_bytes,
        dynamic_shared=compiled.dynamic_shared_bytes,
        blocks_per_multiprocessor=blocks,
        blocks_limited_by=limited_by,
        mma=code.whole.mma,
        mma_expected=mma_expected(case, architecture, mma_kind(architecture, code.whole)),
        loop_mma=loop.mma_count if loop else 0,
        mma_share=round(loop.mma_share, 4) if loop else None,
        global_loads={str(8 * width): count for width, count in code.whole.global_loads.items()},
        bulk_loads=code.whole.bulk_loads,
        atomics=code.whole.atomics,
        exps=code.whole.exps,
        exps_per_score=None if per_score is None else round(per_score, 3),
        instructions=code.whole.instructions,
        limiter=prediction.limiter,
        clocks={unit: round(value, 1) for unit, value in prediction.clocks.items()},
        arithmetic=prediction.arithmetic,
    )
