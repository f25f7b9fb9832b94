"""feed_forward in one call, against the chain of torch.nn.functional calls that a module makes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import bigmodel_kernels as bmk

from .bench_linear import TORCH_ACTIVATIONS
from .case import Case, Inputs, item_bytes, random_tensor


@dataclass(frozen=True)
class Shape:
    """x [rows, width] -> hidden -> width. gate as in feed_forward."""

    rows: int
    width: int
    hidden: int
    activation: str
    gate: str | None = None

    def __str__(self) -> str:
        glu = {("hidden", "relu"): "reglu", ("hidden", "gelu"): "geglu", ("hidden", "silu"): "swiglu"}
        name = glu.get((self.gate, self.activation), self.activation)
        return f"{self.rows}x{self.width}, hidden {self.hidden}, {name}{' input gate' * (self.gate == 'input')}"


QUICK = [
    Shape(1024, 512, 2048, "relu"),
    Shape(1024, 512, 2048, "gelu"),
    Shape(1024, 512, 2048, "silu", "hidden"),
]
# Small enough for the backward pass in 16 bits where the processor has no arithmetic for them: torch's products then
# run at 1 GFLOP/s.
QUICK_BACKWARD_16_BITS = [Shape(128, 256, 512, "gelu"), Shape(128, 256, 512, "silu", "hidden")]
FULL = [
    *QUICK,
    *QUICK_BACKWARD_16_BITS,
    Shape(1024, 512, 2048, "relu", "input"),
    Shape(32, 64, 256, "gelu"),
    Shape(16, 4096, 11008, "silu", "hidden"),
    Shape(512, 1024, 4096, "gelu"),
]

CUDA = [
    Shape(8192, 4096, 16384, "relu"),
    Shape(8192, 4096, 16384, "gelu"),
    Shape(8192, 4096, 11008, "silu", "hidden"),
    Shape(16, 4096, 11008, "silu", "hidden"),
]


def cases(quick: bool, dtypes: list[str], device: str = "cpu") -> Iterator[Case]:
    """The rows of this op. Quick runs on the CPU take the backward pass in bf16 and fp16 at small shapes: at the
    others a call of torch's can take ten seconds."""
    for dtype in dtypes:
        small = quick and dtype != "fp32" and device == "cpu"
        for shape in CUDA if device == "cuda" else QUICK if quick else FULL:
            yield case(shape, dtype, backward=False)
            if not small:
                yield case(shape, dtype, backward=True)
        for shape in QUICK_BACKWARD_16_BITS if small else ():
            yield case(shape, dtype, backward=True)


def case(shape: Shape, dtype: str, backward: bool) -> Case:
    """The row of one shape."""
    weights = ("w1", "b1", "w2", "b2") if shape.gate is None else ("w1", "w2", "w_gate")
    return Case(
        op="feed_forward",
        shape=str(shape),
        dtype=dtype,
        flops=2 * shape.rows * _weight_elements(shape) * (3 if backward else 1),
        bytes=_bytes(shape, dtype, backward),
        make_inputs=lambda generator: _make_inputs(shape, dtype, generator),
        contenders={"ours": lambda inputs: _ours(shape, inputs), "torch": lambda inputs: _with_torch(shape, inputs)},
        truth=lambda inputs: _ours(shape, inputs, backend="reference"),
        differentiable=("x", *weights) if backward else (),
    )


def _make_inputs(shape: Shape, dtype: str, generator: torch.Generator) -> Inputs:
    width, hidden = shape.width, shape.hidden
    inputs = {
        "x": random_tensor(generator, dtype, shape.rows, width),
        "w1": random_tensor(generator, dtype, hidden, width, scale=width**-0.5),
        "w2": random_tensor(generator, dtype, width, hidden, scale=hidden**-0.5),
        "b1": None,
        "b2": None,
        "w_gate": None,
        "grad_output": random_tensor(generator, dtype, shape.rows, width),
    }
    if shape.gate is None:
        inputs["b1"] = random_tensor(generator, dtype, hidden)
        inputs["b2"] = random_tensor(generator, dtype, width)
    else:
        gate_width = hidden if shape.gate == "hidden" else width
        inputs["w_gate"] = random_tensor(generator, dtype, gate_width, width, scale=width**-0.5)
    return inputs


def _ours(shape: Shape, inputs: Inputs, backend: str | None = None) -> Tensor:
    return bmk.feed_forward(
        *(inputs[name] for name in ("x", "w1", "b1", "w2", "b2")),
        activation=shape.activation,
        gate=shape.gate,
        w_gate=inputs["w_gate"],
        backend=backend,
    )


def _with_torch(shape: Shape, inputs: Inputs) -> Tensor:
    x, activation = inputs["x"], TORCH_ACTIVATIONS[shape.activation]
    if shape.gate == "input":
        x = x * torch.sigmoid(F.linear(x, inputs["w_gate"]))
    hidden = F.linear(x, inputs["w1"], inputs["b1"])
    hidden = activation(F.linear(x, inputs["w_gate"])) * hidden if shape.gate == "hidden" else activation(hidden)
    return F.linear(hidden, inputs["w2"], inputs["b2"])


def _weight_elements(shape: Shape) -> int:
    gate = {None: 0, "hidden": shape.width * shape.hidden, "input": shape.width**2}[shape.gate]
    return 2 * shape.width * shape.hidden + gate


def _bytes(shape: Shape, dtype: str, backward: bool) -> int:
    """Forward: x and weights read, output written; the hidden layer can stay in cache. Backward: x, weights and the
    gradient read, the gradients of x and the weights written."""
    x, weights = shape.rows * shape.width, _weight_elements(shape)
    return (2 * x + weights + ((3 * x + 2 * weights) if backward else 0)) * item_bytes(dtype)
