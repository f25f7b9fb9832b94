"""Machine code of a cubin as counts: registers, spills, tensor-core instructions, loads by width, exponentials, of all
of the code and of its inner loop.

nvdisasm and cuobjdump ship with Triton.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .disassembly import Instruction, hot_loop, parse

_USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:\d+")
_KERNEL = re.compile(r"^\.text\.(\S+):$", re.MULTILINE)
_MMA = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "QMMA", "OMMA", "IMMA")
# On global memory. Those on shared memory (ATOMS) are how sm_100 hands out its tensor memory.
_ATOMICS = ("RED", "REDG", "ATOM", "ATOMG", "UTMAREDG")
_BYTES = {"256": 32, "128": 16, "64": 8, "": 4, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_LANES = 32


@dataclass(frozen=True)
class Counts:
    """What a stretch of code holds."""

    instructions: int
    mma: dict[str, int]  # tensor-core instructions by full name, as HMMA.16816.F32.BF16
    register_mma: dict[str, int]  # those of them whose left factor does not come from shared memory
    fp32_multiply_adds: int
    exps: int
    global_loads: dict[int, int]  # by bytes per thread; copies to shared memory count too
    global_stores: dict[int, int]
    bulk_loads: int  # tensor memory accelerator
    shared_bytes: int  # that a warp moves between shared memory and registers, or copies to it from global memory
    atomics: int = 0  # on global memory, whose order, and so the sum that they leave, differs from run to run

    @property
    def mma_count(self) -> int:
        return sum(self.mma.values())

    @property
    def mma_share(self) -> float:
        """Of all instructions, those that multiply matrices: on the tensor cores, or without those in fp32."""
        return (self.mma_count or self.fp32_multiply_adds) / self.instructions

    @property
    def global_bytes(self) -> int:
        """That a thread reads and writes."""
        return sum(width * count for moves in (self.global_loads, self.global_stores) for width, count in moves.items())


@dataclass(frozen=True)
class MachineCode:
    registers: int
    stack_bytes: int
    spill_instructions: int  # LDL and STL
    static_shared_bytes: int
    whole: Counts
    loop: Counts | None  # the inner loop over whole tiles; None without products in a loop


def read_machine_code(cubin: bytes, tools: Path, inner_products: float = 0) -> MachineCode:
    """Of a cubin with one kernel.

    Args: `tools` the folder of nvdisasm and cuobjdump; `inner_products` of hot_loop: multiply-adds by a thread, or
    where tensor cores multiply, their instructions by a warp.
    """
    (code,) = read_kernels(cubin, tools, inner_products).values()
    return code


def read_kernels(cubin: bytes, tools: Path, inner_products: float = 0) -> dict[str, MachineCode]:
    """All kernels of a cubin by their mangled names; arguments as of `read_machine_code`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin)
        usages = {each[1]: each for each in _USAGE.finditer(_output(tools / "cuobjdump", "-res-usage", path))}
        _, *parts = _KERNEL.split(_output(tools / "nvdisasm", "-c", path))
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    return {name: _machine_code(usages[name], text, inner_products) for name, text in texts.items()}


def _machine_code(usage: re.Match, text: str, inner_products: float) -> MachineCode:
    instructions, loops = parse(text)
    registers, stack, shared = map(int, usage.groups()[1:])
    on_tensor_cores = any(each.family in _MMA for each in instructions)
    loop = hot_loop(instructions, loops, _is_mma if on_tensor_cores else _multiply_adds, inner_products)
    return MachineCode(
        registers=registers,
        stack_bytes=stack,
        spill_instructions=sum(each.family in ("LDL", "STL") for each in instructions),
        static_shared_bytes=shared,
        whole=count(instructions),
        loop=count(loop) if loop else None,
    )


def count(instructions: Sequence[Instruction]) -> Counts:
    mma = [each for each in instructions if _is_mma(each)]
    return Counts(
        instructions=len(instructions),
        mma=dict(Counter(each.name for each in mma)),
        register_mma=dict(Counter(each.name for each in mma if not _left_factor_is_shared(each))),
        fp32_multiply_adds=sum(map(_multiply_adds, instructions)),
        exps=sum(each.name.startswith("MUFU.EX2") for each in instructions),
        global_loads=_by_width(instructions, "LDG", "LDGSTS"),
        global_stores=_by_width(instructions, "STG"),
        bulk_loads=sum(each.family == "UTMALDG" for each in instructions),
        shared_bytes=sum(map(_shared_bytes, instructions)),
        atomics=sum(each.family in _ATOMICS for each in instructions),
    )


def _output(*command) -> str:
    return subprocess.run([str(each) for each in command], check=True, capture_output=True, text=True).stdout


def _is_mma(instruction: Instruction) -> int:
    return int(instruction.family in _MMA)


def _multiply_adds(instruction: Instruction) -> int:
    return {"FFMA": 1, "FFMA2": 2}.get(instruction.family, 0)


def _left_factor_is_shared(instruction: Instruction) -> bool:
    """HGMMA names its result first, UTCHMMA its left factor; both say gdesc[...] of what lies in shared memory."""
    operands = instruction.operands.split(", ")
    return operands[1 if instruction.family == "HGMMA" else 0].startswith("gdesc")


def _width(instruction: Instruction) -> int:
    return next((_BYTES[part] for part in instruction.name.split(".")[1:] if part in _BYTES), 4)


def _by_width(instructions: Sequence[Instruction], *families: str) -> dict[int, int]:
    return dict(sorted(Counter(_width(each) for each in instructions if each.family in families).items()))


def _shared_bytes(instruction: Instruction) -> int:
    if instruction.family in ("LDS", "STS", "LDGSTS"):
        return _LANES * _width(instruction)
    if instruction.family in ("LDSM", "STSM"):  # matrices of 8x8 in 16 bits
        parts = instruction.name.split(".")
        return 128 * next((size for size in (4, 2) if str(size) in parts), 1)
    return 0
