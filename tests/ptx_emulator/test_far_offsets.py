"""Offsets beyond 2^31 elements: how far apart a tensor's rows or columns lie changes no bit of any op's result, forward
or backward. Their addresses are lent by the system without memory behind them, and the device's memory is nothing but
the elements, so that a wrong offset is out of bounds."""

import contextlib
import mmap
from collections.abc import Callable, Iterator

import pytest
import torch
from op_check import dtype_name, grad_outputs, leaves

from bigmodel_kernels.testing import (
    ADD_NORM_CASES,
    ATTENTION_CASES,
    ATTENTION_WEIGHTS_CASES,
    FEED_FORWARD_CASES,
    LINEAR_CASES,
)
from tests.ptx_emulator import building

if building.nvcc() is None:
    pytest.skip(building.NO_NVCC, allow_module_level=True)

from tests.ptx_emulator import emulated
from tests.ptx_emulator.test_host import gradients

CASES = {
    "attention": (ATTENTION_CASES, ("mask_float_query_dtype", "head_dim_17")),
    "attention_weights": (ATTENTION_WEIGHTS_CASES, ("mask_float_query_dtype",)),
    "linear": (LINEAR_CASES, ("64x64x64", "gelu_residual")),
    "feed_forward": (FEED_FORWARD_CASES, ("gelu_plain", "silu_hidden", "relu_input")),
    "add_norm": (ADD_NORM_CASES, ("width_7_layer", "width_64_rms")),
}
ROWS = [
    pytest.param(case, dtype, id=f"{op}-{case.name}-{dtype_name(dtype)}")
    for op, (cases, names) in CASES.items()
    for case in cases
    if case.name in names
    for dtype in (torch.float32, torch.float16)
]
# Elements from one row or column to the next: the third lies beyond 2^31. Whole numbers of 128 bits, so that both are
# packed alike and added up in the same order.
NEAR, FAR = 2**10 + 8, 2**30 + 8
NORESERVE = 0x4000  # Linux's MAP_NORESERVE, for which Python 3.11 has no name


@pytest.fixture(scope="module")
def emulator():
    with emulated.cuda_backend() as device:
        yield device


@contextlib.contextmanager
def spread(emulator, along: int, apart: int) -> Iterator[Callable[[dict], dict]]:
    """What copies tensors so that neighbours along a dimension (or the only one) lie `apart`, all else side by side."""
    rows = []

    def placed(x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 0:
            return x
        dim = max(along, -x.dim())
        x = x.movedim(dim, 0)
        size = ((x.shape[0] - 1) * apart + x[0].numel()) * x.element_size()
        space = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | NORESERVE)
        strides = (apart, *torch.empty(x.shape[1:], device="meta").stride())
        there = torch.frombuffer(space, dtype=x.dtype).as_strided(x.shape, strides).copy_(x)
        rows.extend(emulator.buffer(row, "a row") for row in there)
        return there.movedim(0, dim)

    try:
        yield lambda tensors: {name: placed(x) for name, x in tensors.items()}
    finally:
        emulator.forget(*rows)


@pytest.mark.parametrize("case, dtype", ROWS)
@pytest.mark.parametrize("along", [-2, -1], ids=["rows", "columns"])
def test_far_elements(along, case, dtype, emulator):
    results = []
    for apart in (NEAR, FAR):
        with spread(emulator, along, apart) as placed:
            inputs = leaves(placed(case.inputs(dtype)))
            outputs = case.run(inputs, "cuda")
            found = gradients(inputs, outputs, placed(grad_outputs(outputs, dtype)))
            results.append({name: x.detach().clone() for name, x in (outputs | found).items()})
        emulator.check()
    near, far = results
    assert far.keys() == near.keys()
    for name, x in near.items():
        assert torch.equal(far[name], x), f"{name} depends on where the elements lie"
