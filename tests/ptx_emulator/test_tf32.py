"""TF32 on the CUDA kernels, executed: fp32 runs on tensor cores where torch's switch allows it, as exact as torch's own
products of TF32 are, and without the switch not at all."""

import re
from dataclasses import replace

import pytest
import tf32
import torch
from op_check import check_tf32, run_with_gradients

from bigmodel_kernels import attention, linear
from bigmodel_kernels.testing import (
    ATTENTION_CASES,
    ATTENTION_VARLEN_CASES,
    FEED_FORWARD_CASES,
    LINEAR_CASES,
    LINEAR_CROSS_ENTROPY_CASES,
)
from tests.ptx_emulator import building

if building.nvcc() is None:
    pytest.skip(building.NO_NVCC, allow_module_level=True)

from tests.ptx_emulator import comparing, emulated

# Packed sequences take attention's kernels: some of their cases say as much as all.
PACKED = [
    case for case in ATTENTION_VARLEN_CASES if case.name in ("ragged", "grouped_short", "everything", "head_dim_129")
]
CASES = {
    "linear": LINEAR_CASES,
    "feed_forward": FEED_FORWARD_CASES,
    "attention": ATTENTION_CASES,
    "linear_cross_entropy": [case for case in LINEAR_CROSS_ENTROPY_CASES if case.name in ("97x20x2500", "everything")],
    "attention_varlen": PACKED,
}
NAMED = [pytest.param(case, id=f"{op}-{case.name}") for op, cases in CASES.items() for case in cases]


@pytest.fixture(autouse=True)
def switch():
    with tf32.restored():
        yield


@pytest.fixture(scope="module")
def emulator():
    with emulated.cuda_backend() as device:
        yield device


def multipliers(emulator) -> dict[str, bool]:
    """Of the kernels of products that have run: whether they did so on tensor cores. The mask's gradient never does,
    nor do the sums that are the gradient of the loss's bias."""
    kernels = re.compile("(gemm|attention|grad_query|grad_key)_kernel")
    found = {name: each for name, each in emulator.counters().items() if kernels.search(name)}
    return {name: "mma" in each["classes"] for name, each in found.items() if "SumEpilogue<float>" not in name}


def check(case, emulator) -> None:
    """Outputs and gradients lose what TF32 loses."""
    with tf32.allowed():
        outputs, grads = run_with_gradients(case, case.inputs(torch.float32), torch.float32, "cuda")
    emulator.check()
    kernels = multipliers(emulator)
    empty = any(x is not None and x.numel() == 0 for x in case.inputs(torch.float32).values())
    attention = getattr(case, "attention", case)  # of attention_varlen
    large = max(getattr(attention, "head_dim", 0), getattr(attention, "value_dim", 0) or 0) > 128
    assert empty or (kernels and all(found != large for found in kernels.values())), kernels
    check_tf32(case, (outputs, grads))


@pytest.mark.parametrize("case", NAMED)
def test_case(case, emulator):
    check(case, emulator)


# As devices get them that the case fills, and with less shared memory.
DEVICES = {
    "one_multiprocessor": {"multiprocessors": 1},
    "one_multiprocessor_sm_89": {"multiprocessors": 1, "capability": (8, 9), "shared_bytes": 99 << 10},
}
LARGE = [
    *(case for case in LINEAR_CASES if case.name in ("130x100x70", "gelu_residual", "weight_transposed")),
    *(
        case
        for case in ATTENTION_CASES
        if case.name in ("above_large_tiles", "head_dim_80", "causal_large", "everything")
    ),
    *(replace(case, head_dim=128) for case in ATTENTION_CASES if case.name == "above_large_tiles"),
]


@pytest.mark.parametrize("case", LARGE, ids=lambda case: f"{case.name}-{getattr(case, 'head_dim', '')}")
@pytest.mark.parametrize("device", DEVICES)
def test_other_devices(device, case, emulator):
    emulator.device(**DEVICES[device])
    check(case, emulator)


@pytest.mark.parametrize("case", LARGE, ids=lambda case: f"{case.name}-{getattr(case, 'head_dim', '')}")
def test_sm_120(case):
    """The PTX for Blackwell, which nvcc generates in another way."""
    with emulated.cuda_backend((12, 0)) as emulator:
        emulator.device(capability=(12, 0), multiprocessors=1, shared_bytes=99 << 10)
        emulator.counters()
        check(case, emulator)


def small_call(dtype: torch.dtype = torch.float32, op: str = "linear") -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 1, size, 40, generator=generator).to(dtype) for size in (20, 24))
    return linear(x, y[0, 0], backend="cuda") if op == "linear" else attention(x, y, y, backend="cuda")


OPS = ("linear", "attention")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("way", tf32.ON)
def test_every_way_to_allow_tf32_is_heard(way, op, emulator):
    exact = small_call(op=op)
    emulator.counters()
    tf32.ON[way]()
    found = small_call(op=op)
    assert list(multipliers(emulator).values()) == [True]
    assert not torch.equal(found, exact)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("way", tf32.OFF)
def test_true_fp32_is_what_all_else_means(way, op, emulator):
    exact = small_call(op=op)
    emulator.counters()
    tf32.OFF[way]()
    found = small_call(op=op)
    assert list(multipliers(emulator).values()) == [False]
    assert torch.equal(found, exact)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes_do_not_ask(dtype, op, emulator):
    before = small_call(dtype, op)
    with tf32.allowed():
        assert torch.equal(small_call(dtype, op), before)


@pytest.mark.parametrize("op", OPS)
def test_turing_has_none(op):
    with emulated.cuda_backend((7, 5)) as emulator:
        emulator.device(capability=(7, 5), multiprocessors=4, shared_bytes=64 << 10)
        emulator.counters()
        exact = small_call(op=op)
        with tf32.allowed():
            assert torch.equal(small_call(op=op), exact)
        assert list(multipliers(emulator).values()) == [False]


@pytest.mark.parametrize("call", [name for name in comparing.names() if "causal" not in name])
def test_no_bank_conflicts(call):
    with tf32.allowed():
        counted = comparing.counts(call, triton=False, dtype=torch.float32)
    assert all(each.mma or each.kernel == "row_terms_kernel" for each in counted)
    for each in counted:
        assert each.conflicts == 0, each


@pytest.mark.parametrize("factor", ["input", "weight"])
def test_gradients_have_no_bank_conflicts(factor, emulator):
    """Of products whose operands lie along their rows, which ldmatrix cannot turn."""
    x, weight = torch.randn(128, 128), torch.randn(128, 128)
    wanted = {"input": x, "weight": weight}[factor].requires_grad_()
    with tf32.allowed():
        y = linear(x, weight, backend="cuda")
        emulator.counters()
        torch.autograd.grad(y.sum(), wanted)
    emulator.check()
    (kernel,) = [each for name, each in emulator.counters().items() if "gemm" in name]
    classes = kernel["classes"]
    assert "mma" in classes
    assert all(each["wavefronts"] == each["ideal_wavefronts"] for each in classes.values()), classes
