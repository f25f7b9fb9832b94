"""add_norm in one pass over the data, against an addition and then torch.nn.functional.layer_norm or rms_norm."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import bigmodel_kernels as bmk

from .case import Case, Inputs, item_bytes, random_tensor

_EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """x and residual [rows, width]."""

    rows: int
    width: int
    kind: str

    def __str__(self) -> str:
        return f"{self.rows}x{self.width} {self.kind}"


QUICK = [Shape(2048, 1024, "layer"), Shape(2048, 1024, "rms")]
FULL = [
    *QUICK,
    *(Shape(rows, width, kind) for rows, width in [(32, 64), (1000, 257), (16384, 4096)] for kind in ("layer", "rms")),
]

CUDA = [Shape(16384, width, kind) for width in (1024, 4096, 8192) for kind in ("layer", "rms")]


def cases(quick: bool, dtypes: list[str], device: str = "cpu") -> Iterator[Case]:
    """The rows of this op."""
    for dtype in dtypes:
        for shape in CUDA if device == "cuda" else QUICK if quick else FULL:
            for backward in (False, True):
                yield case(shape, dtype, backward)


def case(shape: Shape, dtype: str, backward: bool) -> Case:
    """The row of one shape."""
    parameters = ("weight", "bias") if shape.kind == "layer" else ("weight",)
    # Forward reads x and residual and writes sum and normed; backward reads sum and two gradients and writes one.
    elements = shape.rows * shape.width * (8 if backward else 4)
    return Case(
        op="add_norm",
        shape=str(shape),
        dtype=dtype,
        # Per element: the addition, the square's sum (and the mean's), scale and weight (and shift and bias); about
        # twice that backward. There are no products: the bytes decide.
        flops=shape.rows * shape.width * (8 if shape.kind == "layer" else 5) * (3 if backward else 1),
        bytes=elements * item_bytes(dtype),
        make_inputs=lambda generator: _make_inputs(shape, dtype, generator),
        contenders={"ours": lambda inputs: _ours(shape, inputs), "torch": lambda inputs: _with_torch(shape, inputs)},
        truth=lambda inputs: _ours(shape, inputs, backend="reference"),
        differentiable=("x", "residual", *parameters) if backward else (),
    )


def _make_inputs(shape: Shape, dtype: str, generator: torch.Generator) -> Inputs:
    size = (shape.rows, shape.width)
    return {
        "x": random_tensor(generator, dtype, *size),
        "residual": random_tensor(generator, dtype, *size),
        "weight": random_tensor(generator, dtype, shape.width),
        "bias": random_tensor(generator, dtype, shape.width) if shape.kind == "layer" else None,
        "grad_output 0": random_tensor(generator, dtype, *size),
        "grad_output 1": random_tensor(generator, dtype, *size),
    }


def _ours(shape: Shape, inputs: Inputs, backend: str | None = None) -> tuple[Tensor, Tensor]:
    return bmk.add_norm(
        inputs["x"], inputs["residual"], inputs["weight"], inputs["bias"], kind=shape.kind, eps=_EPS, backend=backend
    )


def _with_torch(shape: Shape, inputs: Inputs) -> tuple[Tensor, Tensor]:
    total = inputs["x"] + inputs["residual"]
    if shape.kind == "layer":
        return total, F.layer_norm(total, (shape.width,), inputs["weight"], inputs["bias"], _EPS)
    return total, F.rms_norm(total, (shape.width,), inputs["weight"], _EPS)
