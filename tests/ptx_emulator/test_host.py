"""What every op's host code does to the devices: launches on torch's current stream of the tensors' device, which it
makes current and leaves as it was, no waiting, no allocation but torch's, and nothing that a CUDA graph could not hold.
hosting.py has the checks, planted.py the faults that they must find."""

import re

import pytest
import torch
from op_check import dtype_name, grad_outputs, leaves

from bigmodel_kernels.testing import (
    CASES,
)
from tests.ptx_emulator import building, planted, stream

if building.nvcc() is None:
    pytest.skip(building.NO_NVCC, allow_module_level=True)

from tests.ptx_emulator import emulated, hosting

# The op, and the cases of it that are run here: between them they make every launch that the op has.
OPS = {
    "attention": ("everything", "long_keys"),
    "attention_decode": ("everything_fp16", "pages_int8", "long_fp16"),
    "attention_varlen": ("everything", "few_queries"),
    "attention_weights": ("everything", "everything_averaged"),
    "linear": ("gelu_residual", "weight_strided"),
    "feed_forward": ("gelu_plain", "silu_hidden", "relu_input"),
    "add_norm": ("rows_257_layer", "width_1031_rms"),
    "rotary": ("positions_of_each", "partial_interleaved"),
    # No case whose rows are reduced: that is torch's work, which no graph of the emulator's holds.
    "linear_cross_entropy": ("97x20x2500",),
}
ROWS = [
    pytest.param(op, case, dtype, id=f"{op}-{case.name}-{dtype_name(dtype)}")
    for op, names in OPS.items()
    for case in CASES[op]
    if case.name in names
    for dtype in (torch.float32, torch.float16)
]


@pytest.fixture(scope="module")
def emulator():
    with emulated.cuda_backend() as device:
        yield device


def test_every_op_has_a_row():
    header = (building.ROOT / "csrc/cuda/cuda.h").read_text()
    names = re.findall(r"void run\(const (\w+?)(?:Forward)?Args&", header)
    ops = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in names if not name.endswith("Backward")}
    assert ops == OPS.keys()


def inputs_of(op: str, case, dtype: torch.dtype) -> dict:
    inputs = case.inputs(dtype)
    return leaves(inputs) if gradient_of(op) else inputs


def gradient_of(op: str) -> str | None:
    """The op that computes its gradients: rotary itself."""
    return {"attention_decode": None, "rotary": "rotary"}.get(op, f"{op}_backward")


def gradients(inputs: dict, outputs: dict, grads: dict) -> dict:
    wanted = {name: x for name, x in inputs.items() if x.requires_grad}
    pairs = (list(outputs.values()), list(wanted.values()), list(grads.values()))
    found = torch.autograd.grad(*pairs, retain_graph=True, allow_unused=True)
    return {f"gradient of {name}": x for name, x in zip(wanted, found, strict=True) if x is not None}


@pytest.mark.parametrize("op, case, dtype", ROWS)
@pytest.mark.parametrize("tensors, current", [(1, 0), (0, 1)])
def test_launches_where_the_tensors_are(tensors, current, op, case, dtype, emulator):
    inputs = inputs_of(op, case, dtype)
    outputs = hosting.check_place(lambda: case.run(inputs, "cuda"), tensors, current)
    if gradient_of(op):
        grads = grad_outputs(outputs, dtype)
        hosting.check_place(lambda: gradients(inputs, outputs, grads), tensors, current)
    emulator.check()


@pytest.mark.parametrize("op, case, dtype", ROWS)
def test_the_device_is_restored_after_an_error(op, case, dtype, emulator):
    """torch's stream is made one of another device, which CUDA refuses."""
    inputs = inputs_of(op, case, dtype)
    outputs = case.run(inputs, "cuda")
    grads = grad_outputs(outputs, dtype) if gradient_of(op) else {}
    refused = r"CUDA refused a kernel's launch: \[ptx_emulator\] stream 257 is none of device 1"
    with emulator.place(tensors=1, current=0, streams=(0, stream(0))):
        with pytest.raises(RuntimeError, match=rf"^\[{op}\] {refused}"):
            case.run(inputs, "cuda")
        assert emulator.current_device == 0
        if gradient_of(op):
            with pytest.raises(RuntimeError, match=rf"^\[{gradient_of(op)}\] {refused}"):
                gradients(inputs, outputs, grads)
        assert emulator.current_device == 0


@pytest.mark.parametrize("op, case, dtype", ROWS)
def test_a_graph_holds_every_launch(op, case, dtype, emulator):
    """Forward and backward, as one graph."""
    inputs, grads = inputs_of(op, case, dtype), {}
    if gradient_of(op):
        grads = {f"grad of {name}": x for name, x in grad_outputs(case.run(inputs, "cuda"), dtype).items()}
    call = getattr(case, "run_in_place", case.run)  # no copying, which is torch's work

    def run(tensors: dict) -> dict:
        inputs_now = {name: tensors[name] for name in inputs}
        outputs = call(inputs_now, "cuda")
        found = gradients(inputs_now, outputs, {name: tensors[name] for name in grads}) if grads else {}
        return {name: x.detach() for name, x in (outputs | found).items()}

    hosting.check_replay(run, inputs | grads)
    emulator.check()


def test_launches_with_much_shared_memory_on_both_devices(emulator):
    """CUDA keeps for each device how much a kernel may have."""
    (case,) = (case for case in CASES["attention"] if case.name == "head_dim_256")
    for device in (0, 1):
        hosting.check_place(lambda: case.run(case.inputs(torch.float16), "cuda"), device, 0)
        assert {each["shared_bytes"] > 48 << 10 for each in emulator.counters().values()} == {True}


@pytest.mark.parametrize("fault", [None, *planted.IN_HOST])
def test_faults_of_host_code(fault):
    assert bool(planted.in_host(fault)) == (fault is not None)


@pytest.mark.parametrize("name", planted.CALLS)
def test_calls_that_wait_or_allocate(name):
    assert planted.in_calls(name) == f"{name}, which nothing emulates"


def test_only_what_is_allowed_is_emulated():
    """Beside the errors' texts and what nvcc's own code calls, whose names begin with __."""
    called = {name for name in building.emulated_calls() if not name.startswith("__")}
    assert called == hosting.ALLOWED | {"cudaGetLastError", "cudaGetErrorString"}
