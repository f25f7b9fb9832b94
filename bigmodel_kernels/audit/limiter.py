"""Which unit a kernel's inner loop would wait for: clocks of one iteration of one block, by unit, on paper.

The longest is the predicted limiter. It assumes that units overlap perfectly and that caches hold what neighbouring
blocks share, so that it says what to look at, and not how fast the kernel is. Of a kernel without products the
"iteration" is one pass through all of its code.
"""

import math
import re
from dataclasses import dataclass

from ..triton.audit_case import AuditCase
from .architectures import Architecture
from .cuda_cases import CudaCase
from .machine_code import Counts, MachineCode

_LANES = 32


@dataclass(frozen=True)
class Prediction:
    limiter: str
    clocks: dict[str, float]
    arithmetic: dict[str, str]  # by unit: the division that the clocks are the result of
    exps_per_score: float | None  # of attention: exponentials in the code over those that the softmax needs


def mma_kind(architecture: Architecture, counts: Counts) -> str:
    """What multiplies: the architecture's own instruction, or HMMA where tiles are too low for it."""
    kinds = {name.split(".")[0] for name in counts.mma}
    return kinds.pop() if len(kinds) == 1 else architecture.mma


def mma_expected(case: AuditCase | CudaCase, architecture: Architecture, kind: str) -> float:
    """Tensor-core instructions that one iteration's products need, per warp (HMMA), warp group (HGMMA) or block
    (UTCHMMA); 0 for fp32, which ordinary units multiply. Of TF32 one sums half as many terms."""
    if case.dtype == "fp32":
        return 0
    if kind == "HMMA":
        return hmma_expected(case, architecture, sum(m * n * k for m, n, k in case.dots))
    depth = 8 if case.dtype == "tf32" else 16
    if kind == "HGMMA":
        groups = case.num_warps // 4
        return sum(max(m / 64 / groups, 1) * (k / depth) * math.ceil(n / 256) for m, n, k in case.dots)
    return sum(math.ceil(m / 128) * math.ceil(n / 256) * (k / depth) for m, n, k in case.dots)


def hmma_expected(case: AuditCase | CudaCase, architecture: Architecture, multiply_adds: int) -> float:
    """HMMA instructions that a warp executes for so many multiply-adds of its block."""
    depth = 8 if architecture.name == "sm_75" or case.dtype == "tf32" else 16
    return multiply_adds / (16 * 8 * depth) / case.num_warps


def iterations_held(case: AuditCase | CudaCase, architecture: Architecture, counts: Counts) -> float:
    """How many iterations' products the code holds, as it does more than one where the compiler unrolled or peeled."""
    expected = mma_expected(case, architecture, mma_kind(architecture, counts))
    if counts.mma and expected:
        return counts.mma_count / expected
    needed = sum(m * n * k for m, n, k in case.dots)
    # Among the multiply-adds are some that belong to no product.
    return max(1, round(counts.fp32_multiply_adds * _LANES * case.num_warps / needed)) if needed else 1


def predict(case: AuditCase | CudaCase, architecture: Architecture, code: MachineCode) -> Prediction:
    loop = code.loop if case.dots else None
    counts = loop or code.whole
    held = iterations_held(case, architecture, counts)
    warps = case.num_warps / held  # the code of one iteration, times this, is what a block runs in one iteration
    exps = counts.exps * _LANES * warps
    if case.iterations and loop:  # of the whole block, by iteration
        exps += (code.whole.exps - loop.exps) * _LANES * case.num_warps / case.iterations
    moved = case.bytes_loaded / case.readers + case.bytes_alone if case.dots else counts.global_bytes * _LANES * warps
    # Without tensor-core instructions the products run on the ordinary units, whatever their dtype.
    unit, rate = ("mma", architecture.mma_flops) if code.whole.mma else ("fp32", architecture.fp32_flops)
    if case.dtype == "tf32":
        rate /= 2
    shared = _shared_bytes(case, architecture, counts, warps)
    work = {
        unit: (2 * sum(m * n * k for m, n, k in case.dots), rate, "operations"),
        "exp": (exps, architecture.exps, "exponentials"),
        "shared memory": (shared, architecture.shared_load_bytes, "bytes"),
        "memory": (moved, architecture.memory_bytes, "bytes"),
        "issue": (counts.instructions * warps, architecture.issues, "instructions"),
    }
    work = {unit: each for unit, each in work.items() if each[0] > 0}
    clocks = {unit: amount / rate for unit, (amount, rate, _) in work.items()}
    arithmetic = {
        unit: f"{amount:.0f} {what} / {rate:.4g} per clock = {clocks[unit]:.0f}"
        for unit, (amount, rate, what) in work.items()
    }
    per_score = counts.exps * _LANES * warps / case.exps if case.exps else None
    return Prediction(max(clocks, key=clocks.get), clocks, arithmetic, per_score)


def _shared_bytes(case: AuditCase | CudaCase, architecture: Architecture, counts: Counts, warps: float) -> float:
    """What an iteration writes to shared memory and reads from it. Only where tensor cores multiply: what ordinary
    units read, many lanes read at the same address, which costs less than its bytes."""
    if not counts.mma:
        return 0
    moved = counts.shared_bytes * warps
    kind = mma_kind(architecture, counts)
    if kind == "HGMMA":
        return moved + _read_by_warp_groups(counts) * warps / 4
    if kind == "UTCHMMA":
        shared = 1 - sum(counts.register_mma.values()) / counts.mma_count
        return moved + sum(2 * k * (n + m * shared) for m, n, k in case.dots)
    return moved


def _read_by_warp_groups(counts: Counts) -> int:
    """Both factors of HGMMA, 64 rows by 16 and 16 by the name's columns (TF32: 8 of twice the size), unless registers
    hold the left one."""
    read = 0
    for name, count in counts.mma.items():
        columns = int(re.search(r"64x(\d+)x(?:16|8)\b", name)[1])
        read += 16 * 2 * (columns * count + 64 * (count - counts.register_mma.get(name, 0)))
    return read
