"""Which unit a kernel's inner loop would wait for: clocks of one iteration of one block, by unit, on paper.

The longest is the predicted limiter. It assumes that units overlap perfectly and that caches hold what neighbouring
blocks share, so that it says what to look at, and not how fast the kernel is.
"""

import math
import re
from dataclasses import dataclass

from ..triton.audit_case import AuditCase
from .architectures import Architecture
from .machine_code import MachineCode


@dataclass(frozen=True)
class Prediction:
    limiter: str
    clocks: dict[str, float]

    def __str__(self) -> str:
        clocks = ", ".join(f"{unit} {clocks:.0f}" for unit, clocks in self.clocks.items())
        return f"{self.limiter} (clocks of an iteration: {clocks})" if clocks else self.limiter


def mma_expected(case: AuditCase, architecture: Architecture) -> float:
    """Tensor-core instructions that one iteration's products need, per warp (HMMA), warp group (HGMMA) or block
    (UTCHMMA); 0 for fp32, which ordinary units multiply."""
    if case.dtype == "fp32":
        return 0
    if architecture.mma == "HMMA":
        depth = 8 if architecture.name == "sm_75" else 16
        return sum(m * n * k for m, n, k in case.dots) / (16 * 8 * depth) / case.num_warps
    if architecture.mma == "HGMMA":
        groups = case.num_warps // 4
        return sum(max(m / 64 / groups, 1) * (k / 16) * math.ceil(n / 256) for m, n, k in case.dots)
    return sum(math.ceil(m / 128) * math.ceil(n / 256) * (k / 16) for m, n, k in case.dots)


def predict(case: AuditCase, architecture: Architecture, code: MachineCode, l2_reuse: float) -> Prediction:
    """l2_reuse: how many blocks read an operand from the L2 cache once memory has delivered it."""
    if not case.dots:
        return Prediction("memory: no products, each element is read once", {})
    # Without tensor-core instructions the products run on the ordinary units, whatever their dtype.
    unit, rate = ("mma", architecture.mma_flops) if code.mma else ("fp32", architecture.fp32_flops)
    clocks = {
        unit: case.mma_flops / rate,
        "exp": case.exps / architecture.exps,
        "shared memory": _shared_bytes(case, architecture, code) / architecture.shared_load_bytes,
        "memory": case.bytes_loaded / l2_reuse / architecture.memory_bytes,
    }
    clocks = {unit: value for unit, value in clocks.items() if value > 0}
    return Prediction(max(clocks, key=clocks.get), clocks)


def _shared_bytes(case: AuditCase, architecture: Architecture, code: MachineCode) -> float:
    """What an iteration writes to shared memory and reads from it."""
    found, expected = sum(code.mma.values()), mma_expected(case, architecture)
    if not found or not expected:
        return 0
    copies = found / expected  # the loop's body appears more than once: peeled, unrolled
    if architecture.mma == "HMMA":
        return case.bytes_loaded + code.matrix_loads * 512 * case.num_warps / copies
    if architecture.mma == "HGMMA":
        shapes = ((re.search(r"64x(\d+)x16", name), count) for name, count in code.mma.items())
        read = sum((64 + int(shape[1])) * 16 * 2 * count for shape, count in shapes if shape)
        return case.bytes_loaded + read * case.num_warps / 4 / copies
    return 2 * case.bytes_loaded
