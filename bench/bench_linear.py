"""linear with bias and activation in one pass, against torch.nn.functional.linear and then the activation."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import bigmodel_kernels as bmk

from .case import Case, Inputs, item_bytes, random_tensor

TORCH_ACTIVATIONS = {
    None: lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


@dataclass(frozen=True)
class Shape:
    """x [rows, width], weight [out_width, width], bias [out_width]."""

    rows: int
    width: int
    out_width: int
    activation: str | None = None

    def __str__(self) -> str:
        activation = f" {self.activation}" if self.activation else ""
        return f"{self.rows}x{self.width} -> {self.out_width}{activation}"


QUICK = [Shape(2048, 512, 2048)]
FULL = [
    *QUICK,
    Shape(2048, 512, 2048, "gelu"),
    Shape(32, 64, 64),
    Shape(1, 512, 2048),
    Shape(16, 4096, 4096),
    Shape(2048, 2048, 512),
    Shape(1000, 257, 509, "silu"),
]

CUDA = [
    Shape(8192, 4096, 4096),
    Shape(8192, 4096, 4096, "gelu"),
    Shape(8192, 4096, 16384, "gelu"),
    Shape(256, 4096, 4096),
    Shape(16, 4096, 4096),
]


def cases(quick: bool, dtypes: list[str], device: str = "cpu") -> Iterator[Case]:
    """The rows of this op."""
    for dtype in dtypes:
        for shape in CUDA if device == "cuda" else QUICK if quick else FULL:
            for backward in (False, True):
                yield case(shape, dtype, backward)


def case(shape: Shape, dtype: str, backward: bool) -> Case:
    """The row of one shape."""
    return Case(
        op="linear",
        shape=str(shape),
        dtype=dtype,
        flops=2 * shape.rows * shape.width * shape.out_width * (3 if backward else 1),
        bytes=_bytes(shape, dtype, backward),
        make_inputs=lambda generator: _make_inputs(shape, dtype, generator),
        contenders={"ours": lambda inputs: _ours(shape, inputs), "torch": lambda inputs: _with_torch(shape, inputs)},
        truth=lambda inputs: _ours(shape, inputs, backend="reference"),
        differentiable=("x", "weight", "bias") if backward else (),
    )


def _make_inputs(shape: Shape, dtype: str, generator: torch.Generator) -> Inputs:
    return {
        "x": random_tensor(generator, dtype, shape.rows, shape.width),
        "weight": random_tensor(generator, dtype, shape.out_width, shape.width, scale=shape.width**-0.5),
        "bias": random_tensor(generator, dtype, shape.out_width),
        "grad_output": random_tensor(generator, dtype, shape.rows, shape.out_width),
    }


def _ours(shape: Shape, inputs: Inputs, backend: str | None = None) -> Tensor:
    return bmk.linear(inputs["x"], inputs["weight"], inputs["bias"], activation=shape.activation, backend=backend)


def _with_torch(shape: Shape, inputs: Inputs) -> Tensor:
    return TORCH_ACTIVATIONS[shape.activation](F.linear(inputs["x"], inputs["weight"], inputs["bias"]))


def _bytes(shape: Shape, dtype: str, backward: bool) -> int:
    """Forward: x and weight read, output written. Backward: x, weight and the gradient read, two gradients written."""
    x, weight, output = shape.rows * shape.width, shape.out_width * shape.width, shape.rows * shape.out_width
    return (x + weight + output + ((2 * x + 2 * weight + output) if backward else 0)) * item_bytes(dtype)
