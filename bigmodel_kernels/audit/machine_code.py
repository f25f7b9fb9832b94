"""Machine code of a cubin as counts: registers, spills, tensor-core instructions, loads by width, exponentials.

nvdisasm and cuobjdump ship with Triton.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.[\w.]+)?)")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_MMA = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "QMMA", "OMMA", "IMMA")
_BYTES = {"256": 32, "128": 16, "64": 8, "": 4, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass(frozen=True)
class MachineCode:
    registers: int
    stack_bytes: int
    spill_instructions: int  # LDL and STL
    static_shared_bytes: int
    mma: dict[str, int]  # tensor-core instructions by full name, as HMMA.16816.F32.BF16
    global_loads: dict[int, int]  # by bytes per thread; copies to shared memory count too
    bulk_loads: int  # tensor memory accelerator
    matrix_loads: int  # ldmatrix of four 8x8 matrices, 512 bytes by a warp; fewer matrices count as parts
    exps: int
    fp32_multiply_adds: int
    instructions: int


def read_machine_code(cubin: bytes, tools: Path) -> MachineCode:
    """Args: `tools` the folder of nvdisasm and cuobjdump."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _USAGE.search(_output(tools / "cuobjdump", "-res-usage", path))
        names = Counter(_INSTRUCTION.findall(_output(tools / "nvdisasm", "-c", path)))
    registers, stack, shared, _ = (int(each) for each in usage.groups())
    return MachineCode(
        registers=registers,
        stack_bytes=stack,
        spill_instructions=_count(names, "LDL", "STL"),
        static_shared_bytes=shared,
        mma={name: count for name, count in names.items() if name.split(".")[0] in _MMA},
        global_loads=_loads(names),
        bulk_loads=_count(names, "UTMALDG"),
        matrix_loads=sum(count * _matrices(name) for name, count in names.items() if name.startswith("LDSM")) // 4,
        exps=sum(count for name, count in names.items() if name.startswith("MUFU.EX2")),
        fp32_multiply_adds=_count(names, "FFMA") + 2 * _count(names, "FFMA2"),
        instructions=sum(names.values()) - _count(names, "NOP"),
    )


def _output(*command) -> str:
    return subprocess.run([str(each) for each in command], check=True, capture_output=True, text=True).stdout


def _count(names: Counter, *families: str) -> int:
    return sum(count for name, count in names.items() if name.split(".")[0] in families)


def _matrices(name: str) -> int:
    return next((size for size in (4, 2) if name.endswith(f".{size}") or f".{size}." in name), 1)


def _loads(names: Counter) -> dict[int, int]:
    widths: Counter = Counter()
    for name, count in names.items():
        family, *parts = name.split(".")
        if family in ("LDG", "LDGSTS"):
            widths[next((_BYTES[part] for part in parts if part in _BYTES), 4)] += count
    return dict(sorted(widths.items()))
