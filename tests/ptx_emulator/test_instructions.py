"""Each instruction against known answers."""

import pytest

from tests.ptx_emulator.known_answers import APPROXIMATE, APPROXIMATE_SPECIAL, EXACT
from tests.ptx_emulator.one_instruction import f32, float_of, run


@pytest.mark.parametrize("row", [*EXACT, *APPROXIMATE_SPECIAL], ids=lambda row: row.instruction.split(" ", 1)[0])
def test_known_answers(row):
    inputs = [case[: len(row.sources)] for case in row.cases]
    wanted = [case[len(row.sources) :] for case in row.cases]
    found = run(row.instruction, row.results, row.sources, inputs)
    for given, got, right in zip(inputs, found, wanted, strict=True):
        assert got == right, f"of {[hex(x) for x in given]}: {[hex(x) for x in got]}, not {[hex(x) for x in right]}"


@pytest.mark.parametrize("opcode, kind, bound, cases", APPROXIMATE, ids=[each[0] for each in APPROXIMATE])
def test_approximations(opcode, kind, bound, cases):
    found = run(f"{opcode} {{0}}, {{1}};", "r", "r", [(f32(x),) for x, _ in cases])
    for (x, true), (bits,) in zip(cases, found, strict=True):
        error = abs(float_of(bits) - true)
        # Sources are rounded to f32 here; what that changes is no error of the instruction.
        assert error <= bound * (abs(true) if kind == "r" else 1) + abs(true) * 2**-23, f"{opcode} of {x}"
