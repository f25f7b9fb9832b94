"""The CUDA kernels, executed: every case of every op through the binding and the functional API, forward and backward,
in every dtype, as exact as the tolerance rule asks and without a hazard."""

import json
import subprocess
import sys

import pytest
import torch
from op_check import DTYPES, check_case, check_repeats, dtype_name

from bigmodel_kernels.testing import (
    ADD_NORM_CASES,
    ATTENTION_CASES,
    ATTENTION_WEIGHTS_CASES,
    FEED_FORWARD_CASES,
    LINEAR_CASES,
)

from . import building

if building.nvcc() is None:
    pytest.skip(building.NO_NVCC, allow_module_level=True)

from . import emulated

CASES = {
    "attention": ATTENTION_CASES,
    "attention_weights": ATTENTION_WEIGHTS_CASES,
    "linear": LINEAR_CASES,
    "feed_forward": FEED_FORWARD_CASES,
    "add_norm": ADD_NORM_CASES,
}
NAMED = [pytest.param(op, case, id=f"{op}-{case.name}") for op, cases in CASES.items() for case in cases]


@pytest.fixture(scope="module")
def emulator():
    with emulated.cuda_backend() as device:
        yield device


def needs_kernel(op: str) -> None:
    for name in (op, f"{op}_backward"):
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{emulated.NAMESPACE}::{name}", "CPU"):
            pytest.skip(f"{name} has no CUDA kernel in this build")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("op, case", NAMED)
def test_case(op, case, dtype, emulator):
    needs_kernel(op)
    check_case(case, dtype, "cuda")
    emulator.check()
    launched = emulator.counters()
    assert launched or 0 in next(iter(case.inputs(dtype).values())).shape, "nothing ran on the emulator"


# The widths of an add_norm are split among lanes in other ways on every side of a power of two.
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("op, name", [("add_norm", "rows_257_layer"), ("linear", "130x100x70"), ("attention", "gqa")])
def test_repeats_bitwise(op, name, dtype, emulator):
    needs_kernel(op)
    (case,) = [case for case in CASES[op] if case.name == name]
    check_repeats(case, dtype, "cuda")
    emulator.check()


def test_command(tmp_path):
    """One line of JSON, or a table."""
    command = [
        sys.executable,
        "-m",
        "tests.ptx_emulator",
        "add-norm",
        "--rows",
        "5",
        "--width",
        "33",
        "--dtype",
        "bf16",
    ]
    run = subprocess.run([*command, "--backward", "--json"], cwd=building.ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    found = json.loads(line)
    assert found["hazards"] == [] and 0 < found["error"] <= 3 * found["reference_error"]
    assert any("add_norm_backward" in kernel for kernel in found["counters"])
    run = subprocess.run(command, cwd=building.ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "hazards: none" in run.stdout and "the reference's in bf16" in run.stdout
