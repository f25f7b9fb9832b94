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
    instructions: Sequence[Instruction],
    loops: Sequence[tuple[int, int]],
    weight: Callable[[Instruction], int],
    inner_products: float = 0,
) -> list[Instruction] | None:
    """What one iteration of the inner loop executes. Of the loops that hold products and no smaller loop that does, the
    one with the largest share of them: where a kernel has a loop over whole tiles and one over tiles at a boundary, the
    former. weight: how many products an instruction counts for. None without such a loop.

    inner_products: where the inner loop has loops inside of it, over a part of the features at a time, how many
    products each of them computes before it ends: their instructions come as often as that takes. Where nothing is
    around them, that is all of the code.
    """

    def products(stretch: Sequence[Instruction]) -> int:
        return sum(weight(each) for each in stretch)

    candidates = [loop for loop in set(loops) if products(instructions[slice(*loop)])]
    inner = _smallest(candidates)
    if not inner:
        return None
    if inner_products:
        around = _smallest([each for each in candidates if each not in inner]) or [(0, len(instructions))]
        times = {each: max(1, round(inner_products / products(instructions[slice(*each)]))) for each in inner}
        executed = [_repeated(instructions, each, times) for each in around]
    else:
        executed = [list(instructions[slice(*each)]) for each in inner]
    return max(executed, key=lambda each: products(each) / len(each))


def _smallest(loops: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that hold none of the others."""
    return [
        loop for loop in loops if not any(loop[0] <= each[0] and each[1] <= loop[1] and each != loop for each in loops)
    ]


def _repeated(
    instructions: Sequence[Instruction], loop: tuple[int, int], times: dict[tuple[int, int], int]
) -> list[Instruction]:
    """The instructions of a loop, those of the loops in it so many times."""
    executed, at = [], loop[0]
    for first, end in sorted(each for each in times if loop[0] <= each[0] and each[1] <= loop[1]):
        executed += [*instructions[at:first], *list(instructions[first:end]) * times[first, end]]
        at = end
    return [*executed, *instructions[at : loop[1]]]
