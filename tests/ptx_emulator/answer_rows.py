"""How known answers are written, and the bits that they are full of.

A row: the instruction with {0} for its result and {1}, ... for its sources, the kinds of both (see one_instruction),
and cases: sources, then results, all as bits.
"""

from typing import NamedTuple


class Row(NamedTuple):
    instruction: str
    results: str
    sources: str
    cases: tuple[tuple[int, ...], ...]


def two(opcode: str, kind: str, *cases: tuple[int, ...]) -> Row:
    """d = a op b, all of one kind."""
    return Row(f"{opcode} {{0}}, {{1}}, {{2}};", kind, kind * 2, cases)


def one(opcode: str, kind: str, *cases: tuple[int, ...]) -> Row:
    return Row(f"{opcode} {{0}}, {{1}};", kind, kind, cases)


def three(opcode: str, kind: str, *cases: tuple[int, ...]) -> Row:
    return Row(f"{opcode} {{0}}, {{1}}, {{2}}, {{3}};", kind, kind * 3, cases)


def row(instruction: str, results: str, sources: str, *cases: tuple[int, ...]) -> Row:
    return Row(instruction, results, sources, cases)


MAX, MIN, ONES = 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF
MAX64, MIN64, ONES64 = 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF
NAN, INF, NEG_INF, NEG_ZERO = 0x7FFFFFFF, 0x7F800000, 0xFF800000, 0x80000000
OTHER_NAN = 0xFFC12345
TINY, NEG_TINY = 0x00000001, 0x80000001  # the smallest subnormal numbers
NEG_ZERO16, NAN16, INF16 = 0x8000, 0x7FFF, 0x7C00
BNAN, BINF = 0x7FFF, 0x7F80
