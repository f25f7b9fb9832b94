"""Offsets beyond 2^31 elements: how far apart a tensor's neighbours along a dimension lie changes no bit of any op's
result, forward or backward. Their addresses are lent by the system without memory behind them, and the device's memory
is nothing but the elements, so that a wrong offset is out of bounds."""

import contextlib
import mmap
from collections.abc import Callable, Iterator

import pytest
import torch
from op_check import dtype_name, grad_outputs, leaves

from bigmodel_kernels.testing import (
    CASES,
)
from tests.ptx_emulator import building

if building.nvcc() is None:
    pytest.skip(building.NO_NVCC, allow_module_level=True)

from tests.ptx_emulator import emulated
from tests.ptx_emulator.test_host import OPS, gradient_of, gradients

# The op, the cases of it that are run here, and the dimensions along which neighbours lie apart: packed tokens
# lie before heads, and a cache's last dimension is contiguous.
ROWS_OF = {
    "attention": (("mask_float_query_dtype", "head_dim_17"), (-2, -1)),
    "attention_decode": (("cache_fp16", "everything_fp16", "pages_int8"), (-4, -3, -2)),
    "attention_varlen": (("mask_float", "everything"), (-3, -2, -1)),
    "attention_weights": (("mask_float_query_dtype",), (-2, -1)),
    "linear": (("64x64x64", "gelu_residual"), (-2, -1)),
    "feed_forward": (("gelu_plain", "silu_hidden", "relu_input"), (-2, -1)),
    "add_norm": (("width_7_layer", "width_64_rms"), (-2, -1)),
    "rotary": (("positions_of_each", "partial_interleaved"), (-4, -3, -2, -1)),
    "linear_cross_entropy": (("40x64x128", "softcap"), (-2, -1)),
}
ROWS = [
    pytest.param(op, case, dtype, along, id=f"{op}-{case.name}-{dtype_name(dtype)}-{along}")
    for op, (names, dimensions) in ROWS_OF.items()
    for case in CASES[op]
    if case.name in names
    for dtype in (torch.float32, torch.float16)
    for along in dimensions
]
# Elements from one neighbour to the next. Whole numbers of 128 bits, so that both are packed alike and added up in the
# same order.
NEAR, FAR = 2**16 + 16, 2**31 + 16
NORESERVE = 0x4000  # Linux's MAP_NORESERVE, for which Python 3.11 has no name


@pytest.fixture(scope="module")
def emulator():
    with emulated.cuda_backend() as device:
        yield device


@contextlib.contextmanager
def spread(emulator, along: int, apart: int) -> Iterator[Callable[[dict], dict]]:
    """What copies tensors so that neighbours along a dimension (or the only one) lie `apart`, all else side by side."""
    rows = []

    def placed(x: torch.Tensor | None) -> torch.Tensor | None:
        if x is None or x.dim() == 0:
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


def test_every_op_has_a_row():
    assert ROWS_OF.keys() == OPS.keys()


@pytest.mark.parametrize("op, case, dtype, along", ROWS)
def test_far_elements(op, case, dtype, along, emulator):
    run = getattr(case, "run_in_place", case.run)  # no copies of caches, which would lie side by side
    results = []
    for apart in (NEAR, FAR):
        with spread(emulator, along, apart) as placed:
            inputs = placed(case.inputs(dtype))
            inputs = leaves(inputs) if gradient_of(op) else inputs
            outputs, found = run(inputs, "cuda"), {}
            if gradient_of(op):
                found = gradients(inputs, outputs, placed(grad_outputs(outputs, dtype)))
            results.append({name: x.detach().clone() for name, x in (outputs | found).items()})
        emulator.check()
    near, far = results
    assert far.keys() == near.keys()
    for name, x in near.items():
        torch.testing.assert_close(far[name], x, rtol=0, atol=0, equal_nan=True, msg=f"{name}: other numbers far apart")
