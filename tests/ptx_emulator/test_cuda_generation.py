"""What the CUDA kernels of generation do beyond the cases of test_cuda.py: rotary's chunks of 128 bits, in place and
with positions that only the device sees."""

from dataclasses import replace

import pytest
import torch
from op_check import DTYPES, check_case, dtype_name

import bigmodel_kernels as bmk
from bigmodel_kernels.testing import ROTARY_CASES
from tests.ptx_emulator import building

if building.nvcc() is None:
    pytest.skip(building.NO_NVCC, allow_module_level=True)

from tests.ptx_emulator import emulated

ROTARY = {case.name: case for case in ROTARY_CASES}
# Heads are taken four at a time: here one is left over of query's and key's together.
CHUNKED = [
    replace(ROTARY[name], name=f"{name}_chunked", heads=6, kv_heads=3, rotary_dim=32, head_dim=48)
    for name in ("plain", "plain_interleaved", "float32_tables", "float32_tables_interleaved", "positions_of_each",
                 "tokens_interleaved")
]  # fmt: skip


@pytest.fixture(scope="module")
def emulator():
    with emulated.cuda_backend() as device:
        yield device


def counted(emulator) -> dict[str, dict]:
    """The counts of one kernel, by class of instruction."""
    (kernel,) = emulator.counters().values()
    return kernel["classes"]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", CHUNKED, ids=lambda case: case.name)
def test_rotary_in_chunks(case, dtype, emulator):
    check_case(case, dtype, "cuda")
    emulator.check()
    emulator.counters()
    inputs = case.inputs(dtype)
    case.run(inputs, "cuda")
    stores = counted(emulator)["store_global"]
    bytes_written = dtype.itemsize * sum(inputs[name].numel() for name in ("query", "key"))
    assert stores["bytes"] == bytes_written == 16 * stores["lanes"], stores


# One element at a time where 128 bits do not fit. Sizes are even, so that no word of four bytes is read by two blocks:
# the emulator, which keeps one note of a word's readers, would take a write to the other half for a race.
IN_PLACE = [
    *CHUNKED[:2],
    *(replace(ROTARY[name], rotary_dim=20, head_dim=36) for name in ("plain", "plain_interleaved")),
    ROTARY["no_key"],
    ROTARY["heads_inside"],
]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", IN_PLACE, ids=lambda case: case.name)
def test_rotary_in_place(case, dtype, emulator):
    """The same numbers; features that do not turn are not touched."""
    inputs = case.inputs(dtype)
    expected = case.run(inputs, "cuda")
    emulator.counters()
    turned = bmk.rotary(**inputs, interleaved=case.interleaved, inplace=True, backend="cuda")
    emulator.check()
    assert turned[0] is inputs["query"] and turned[1] is inputs["key"]
    for name, ours in expected.items():
        assert torch.equal(ours, inputs[name])
    elements = sum(ours.numel() for ours in expected.values()) // case.head_dim * (case.rotary_dim or case.head_dim)
    assert counted(emulator)["store_global"]["bytes"] == dtype.itemsize * elements


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_of_positions_outside_the_tables(interleaved, emulator):
    """Nothing waits for the device to refuse them: they give NaN, as on Triton, and read nothing."""
    query, tables = torch.randn(1, 2, 4, 10), [torch.randn(6, 4) for _ in range(2)]
    turned, _ = bmk.rotary(query, None, *tables, torch.tensor([0, -1, 6, 5]), interleaved=interleaved, backend="cuda")
    emulator.check()
    assert turned[..., 1:3, :8].isnan().all() and not turned[..., 8:].isnan().any()
    assert not turned[..., [0, 3], :].isnan().any()
