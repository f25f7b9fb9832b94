"""Launches of the CUDA kernels that other devices would get, executed by the PTX emulator: large and small tiles, split
keys or whole ones, more or less shared memory."""

from dataclasses import replace

import pytest
import torch
from op_check import check_case

from bigmodel_kernels.testing import ATTENTION_CASES, LINEAR_CASES
from tests.ptx_emulator import building

if building.nvcc() is None:
    pytest.skip(building.NO_NVCC, allow_module_level=True)

from tests.ptx_emulator import emulated

DEVICES = {
    "one_multiprocessor": {"capability": (8, 0), "multiprocessors": 1, "shared_bytes": 163 << 10},
    "sm_86": {"capability": (8, 6), "multiprocessors": 84, "shared_bytes": 99 << 10},
    "sm_75": {"capability": (7, 5), "multiprocessors": 40, "shared_bytes": 64 << 10},
}
ATTENTION = {case.name: case for case in ATTENTION_CASES}
LONG = replace(ATTENTION["causal"], name="long", batch=1, q_len=300, kv_len=300)
CASES = [
    *(ATTENTION[name] for name in ("large_tiles", "long_keys", "grouped", "multi_query", "everything", "head_dim_256")),
    *(replace(LONG, head_dim=head_dim) for head_dim in (32, 64, 96, 128, 192, 256)),
    *(case for case in LINEAR_CASES if case.name in ("130x100x70", "65x127x129", "weight_transposed")),
]


@pytest.fixture
def emulator():
    with emulated.cuda_backend() as device:
        yield device
        device.device()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{getattr(case, 'head_dim', '')}")
def test_case(case, device, emulator):
    emulator.device(**DEVICES[device])
    check_case(case, torch.float16, "cuda")
    emulator.check()


def kernels(emulator) -> str:
    return " ".join(emulator.counters())


def test_few_blocks_split_their_keys(emulator):
    """And the results are merged; on a device that they fill, they are not split."""
    for device, split in (("sm_86", True), ("one_multiprocessor", False)):
        emulator.device(**DEVICES[device])
        emulator.counters()
        check_case(ATTENTION["long_keys"], torch.float16, "cuda")
        assert ("merge_kernel" in kernels(emulator)) == split
