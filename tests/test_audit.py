"""The audit: what the machine code of default kernels must show, and what the command prints.

A selection that compiles in about a minute and a half; `bigmodel audit` compiles them all.
"""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels have no machine code", allow_module_level=True)

from bigmodel_kernels.audit import ARCHITECTURES, audit, cases
from bigmodel_kernels.audit.architectures import BY_CAPABILITY, blocks_per_multiprocessor

SELECTED = {
    "sm_75": ("linear (few rows)", "add_norm (layer 4096)"),
    "sm_80": ("linear (bias residual)", "grad_weight (backward)", "gated_hidden (swiglu)", "add_norm (layer 4096)"),
    "sm_86": ("linear (bias residual)", "grad_input (gelu backward)"),
    "sm_89": ("gated_hidden (swiglu)", "add_norm_backward (layer 4096 backward)"),
    "sm_90": ("linear (few rows)", "grad_weight (backward)", "gated_hidden (swiglu)", "add_norm (layer 65536)"),
    "sm_100": ("linear (few rows)", "gate_gradient (gelu backward)", "add_norm_backward (rms 4096 backward)"),
    "sm_120": ("linear (gelu)", "grad_weight (backward)"),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def rows(request):
    arch = request.param
    dtype = "fp16" if arch == "sm_75" else "bf16"
    selected = [case for case in cases(arch, dtypes=(dtype,)) if case.name in SELECTED[arch]]
    assert len(selected) == len(SELECTED[arch])
    return list(audit(arch, selected))


def test_products_run_on_the_tensor_cores(rows):
    """Of the architecture's own kind, and at least as many as the blocks need. Triton has none for sm_75."""
    for row in rows:
        expected = next(each.mma for each in BY_CAPABILITY.values() if each.name == row.arch)
        if row.op == "add_norm" or row.arch == "sm_75":
            assert not row.mma
            continue
        assert {name.split(".")[0] for name in row.mma} == {expected}, row
        assert sum(row.mma.values()) >= row.mma_expected, row


def test_no_register_spills(rows):
    for row in rows:
        assert row.spills == 0, row


def test_true_fp32_spills_little():
    """Its products run on the ordinary units, and the compiler trades a few spills for one more block."""
    selected = [case for case in cases("sm_86", dtypes=("fp32",)) if case.name == "grad_weight (backward)"]
    (row,) = audit("sm_86", selected)
    assert row.spills <= 16 and not row.mma


def test_fits_the_architecture(rows):
    for row in rows:
        architecture = next(each for each in BY_CAPABILITY.values() if each.name == row.arch)
        assert row.static_shared + row.dynamic_shared <= architecture.block_shared_bytes, row
        assert row.blocks_per_multiprocessor >= 1, row


def test_aligned_inputs_are_loaded_128_bits_at_a_time(rows):
    for row in rows:
        assert row.global_loads["128"] >= 0.5 * sum(row.global_loads.values()), row


def test_predictions_say_so(rows):
    for row in rows:
        assert row.predicted and row.backend == "triton" and row.limiter


def test_occupancy():
    a100 = BY_CAPABILITY[80]
    assert blocks_per_multiprocessor(a100, warps=8, registers=255, shared_bytes=98304) == (1, "registers")
    assert blocks_per_multiprocessor(a100, warps=4, registers=32, shared_bytes=49152) == (3, "shared memory")
    assert blocks_per_multiprocessor(a100, warps=16, registers=32, shared_bytes=0) == (4, "warps")
    assert blocks_per_multiprocessor(a100, warps=1, registers=16, shared_bytes=0) == (32, "blocks")


def test_command(tmp_path):
    path = tmp_path / "rows.json"
    command = [sys.executable, "-m", "bigmodel_kernels.cli", "audit", "--arch", "sm_80", "--op", "add_norm"]
    command += ["--dtype", "bf16", "--json", str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Predicted from machine code, not measured" in output and "add_norm (rms 4096)" in output
    rows = json.loads(path.read_text())
    assert rows and all(row["arch"] == "sm_80" and row["backend"] == "triton" and row["spills"] == 0 for row in rows)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--arch", "sm_42"], "[audit] 'sm_42' is no architecture that is known; expected one of sm_75"),
        (["--op", "rotary"], "[audit] 'rotary' is no op that is known; expected one of attention"),
        (["--dtype", "fp8"], "[audit] 'fp8' is no dtype that is known; expected one of fp32"),
    ],
)
def test_unknown_names(options, message):
    command = [sys.executable, "-c", "from bigmodel_kernels.cli import main; main()", "audit", *options]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and message in " ".join(result.stderr.split())
