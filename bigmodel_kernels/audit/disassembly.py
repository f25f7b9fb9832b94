"""Disassembled machine code as a list of instructions, and the loop in it where a kernel spends its time.

Loops are found by their backward branches. What the compiler moved out of a loop's way, such as the waits for a barrier
at the end of a kernel, does not count as part of it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(
    r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@(?P<guard>!?U?P\w+)\s+)?(?P<name>[A-Z][A-Z0-9_]*(?:\.[\w.]+)?)(?P<operands>[^;]*);"
)
_TARGET = re.compile(r"`\((\.L_\w+)\)")


@dataclass(frozen=True)
class Instruction:
    name: str  # with its suffixes, as LDG.E.128
    operands: str

    @property
    def family(self) -> str:
        return self.name.split(".")[0]


def parse(text: str) -> tuple[list[Instruction], list[tuple[int, int]]]:
    """(instructions, loops) of nvdisasm's text. A loop is (first, end): instructions [first, end), from the target of a
    backward branch to the branch. Instructions that never run (guarded by !PT, or padding) are left out."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    loops = []
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label:
            labels[label[1]] = len(instructions)
            continue
        found = _INSTRUCTION.search(line)
        if found is None or found["guard"] == "!PT" or found["name"] == "NOP":
            continue
        instructions.append(Instruction(found["name"], found["operands"].strip()))
        target = _TARGET.search(found["operands"]) if found["name"].startswith("BRA") else None
        if target and target[1] in labels:
            loops.append((labels[target[1]], len(instructions)))
    return instructions, loops


def hot_loop(
    instructions: Sequence[Instruction], loops: Sequence[tuple[int, int]], weight: Callable[[Instruction], int]
) -> list[Instruction] | None:
    """Of the loops that hold products and no smaller loop that does, the one with the largest share of them: where a
    kernel has a loop over whole tiles and one over tiles at a boundary, the former. weight: how many products an
    instruction counts for. None without such a loop."""

    def products(loop: tuple[int, int]) -> int:
        return sum(weight(each) for each in instructions[slice(*loop)])

    candidates = {loop: count for loop in set(loops) if (count := products(loop))}
    inner = [
        loop
        for loop in candidates
        if not any(loop[0] <= each[0] and each[1] <= loop[1] and each != loop for each in candidates)
    ]
    if not inner:
        return None
    first, end = max(inner, key=lambda loop: candidates[loop] / (loop[1] - loop[0]))
    return list(instructions[first:end])
