"""What only a device can show: work on a stream of one's own, CUDA graphs of both passes, and TF32 as the hardware
multiplies it. `make test-gpu` runs this on both GPU backends; elsewhere every test is skipped, and says why."""

import os

import pytest
import tf32
import torch
from op_check import check_tf32, dtype_name, grad_outputs, leaves, moved, run_with_gradients

import bigmodel_kernels as bmk
from bigmodel_kernels.testing import (
    CASES,
    AttentionDecodeCase,
)

Tensors = dict[str, torch.Tensor | None]
NAMES = {
    "attention": ("everything", "long_keys"),
    "attention_decode": ("pages_int8", "long_fp16"),
    "attention_varlen": ("everything",),
    "attention_weights": ("everything_averaged",),
    "linear": ("gelu_residual", "weight_strided"),
    "feed_forward": ("silu_hidden", "relu_input"),
    "add_norm": ("rows_257_layer",),
    "rotary": ("positions_of_each",),
    "linear_cross_entropy": ("97x20x2500",),
}
ROWS = [
    pytest.param(case, id=f"{op}-{case.name}") for op, names in NAMES.items() for case in CASES[op]
    if case.name in names
]  # fmt: skip


def _backend(name: str):
    wanted = os.environ.get("BIGMODEL_TEST_GPU") == "1"
    reasons = bmk.info()["backends"][name] if wanted else ["BIGMODEL_TEST_GPU is not 1: `make test-gpu` runs it"]
    return pytest.param(name, marks=pytest.mark.skipif(bool(reasons), reason="; ".join(reasons)))


BACKENDS = [_backend(name) for name in ("triton", "cuda")]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=dtype_name)


def on_device(tensors: Tensors) -> Tensors:
    return {name: moved(x, "cuda") for name, x in tensors.items()}


def filled(tensors: Tensors, contents: Tensors) -> Tensors:
    for name, x in tensors.items():
        if x is not None:
            x.copy_(contents[name])
    return tensors


def changed(name: str, x: torch.Tensor | None) -> torch.Tensor | None:
    """Other contents for an input, as valid as its own: places, lengths and a cache's integers stay."""
    return x + 1 if name == "dropout_seed" else 0.7 * x + 0.1 if x is not None and x.is_floating_point() else x


def gradients_of_outputs(case, inputs: Tensors, dtype: torch.dtype, backend: str) -> Tensors:
    """None for an op without gradients."""
    decoding = isinstance(case, AttentionDecodeCase)
    return {} if decoding else grad_outputs(case.run(inputs, backend), dtype)


def both_passes(case, inputs: Tensors, grads: Tensors, backend: str) -> Tensors:
    inputs = leaves(inputs) if grads else inputs
    outputs = case.run(inputs, backend)
    wanted = {name: x for name, x in inputs.items() if x is not None and x.requires_grad}
    found = ()
    if grads:
        pairs = (list(outputs.values()), list(wanted.values()), list(grads.values()))
        found = torch.autograd.grad(*pairs, allow_unused=True)
    of_inputs = {f"gradient of {name}": grad for name, grad in zip(wanted, found, strict=True) if grad is not None}
    return {name: x.detach() for name, x in (outputs | of_inputs).items()}


def assert_same(found: Tensors, expected: Tensors) -> None:
    for name, x in expected.items():
        assert torch.equal(found[name].nan_to_num(7.0), x.nan_to_num(7.0)), name


@DTYPES
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ROWS)
def test_launches_on_torchs_current_stream(case, backend, dtype):
    """The inputs get their contents late, on that stream: a launch on another would read what was there before."""
    inputs = on_device(case.inputs(dtype))
    grads = gradients_of_outputs(case, inputs, dtype, backend)
    expected = both_passes(case, inputs, grads, backend)
    late = {name: x.zero_() for name, x in on_device(case.inputs(dtype)).items() if x is not None}
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # clocks: some hundredths of a second
        filled(late, inputs)
        found = both_passes(case, {name: late.get(name) for name in inputs}, grads, backend)
    torch.cuda.synchronize()
    assert_same(found, expected)


@DTYPES
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ROWS)
def test_a_graph_gives_what_a_call_does(case, backend, dtype):
    """Forward and backward in one graph, replayed on other contents of the same memory."""
    inputs = on_device(case.inputs(dtype))
    with torch.cuda.stream(torch.cuda.Stream()):  # what is done once, as compiling: torch asks for it before a capture
        grads = gradients_of_outputs(case, inputs, dtype, backend)
        both_passes(case, inputs, grads, backend)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both_passes(case, inputs, grads, backend)
    filled(inputs, {name: changed(name, x) for name, x in inputs.items()})
    expected = both_passes(case, inputs, grads, backend)
    graph.replay()
    torch.cuda.synchronize()
    assert_same(captured, expected)


IN_TF32 = {
    "linear": ("130x100x70", "deep", "gelu_residual", "weight_transposed"),
    "feed_forward": ("silu_hidden", "relu_input"),
    "attention": ("above_large_tiles", "head_dim_80", "head_dim_128", "everything"),
    "attention_varlen": ("ragged", "everything"),
}


# Triton hands its factors to the hardware unrounded, which cuts them off: they lose up to twice what rounding does.
@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{op}-{case.name}") for op, names in IN_TF32.items() for case in CASES[op]
     if case.name in names],
)  # fmt: skip
def test_tf32_loses_what_torchs_own_does(case, backend):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("devices before compute capability 8.0 have no TF32")
    with tf32.allowed():
        found = run_with_gradients(case, case.inputs(torch.float32), torch.float32, backend)
    check_tf32(case, found)


def test_every_op_has_a_row():
    assert NAMES.keys() == set(bmk.backends.OPS)
    for op, names in (*NAMES.items(), *IN_TF32.items()):
        assert set(names) <= {case.name for case in CASES[op]}
