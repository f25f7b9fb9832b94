"""linear_cross_entropy, which never holds the logits, against torch's cross_entropy of them: time and peak memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import bigmodel_kernels as bmk

from .case import Case, Inputs, item_bytes, random_tensor


@dataclass(frozen=True)
class Shape:
    """hidden [rows, width], weight [vocabulary, width]."""

    rows: int
    width: int
    vocabulary: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.width}x{self.vocabulary}"


QUICK = [Shape(256, 128, 32000)]
FULL = [*QUICK, Shape(1024, 512, 32000), Shape(1024, 512, 128000)]
CUDA = [Shape(8192, 4096, 32000), Shape(8192, 4096, 128256)]


def cases(quick: bool, dtypes: list[str], device: str = "cpu") -> Iterator[Case]:
    """The rows of this op."""
    for dtype in dtypes:
        for shape in CUDA if device == "cuda" else QUICK if quick else FULL:
            for backward in (False, True):
                yield case(shape, dtype, backward)


def case(shape: Shape, dtype: str, backward: bool) -> Case:
    """The row of one shape."""
    product = 2 * shape.rows * shape.width * shape.vocabulary
    operands = (shape.rows + shape.vocabulary) * shape.width
    return Case(
        op="linear_cross_entropy",
        shape=str(shape),
        dtype=dtype,
        flops=product * (3 if backward else 1),
        bytes=operands * item_bytes(dtype) * (3 if backward else 1),
        make_inputs=lambda generator: _make_inputs(shape, dtype, generator),
        contenders={"ours": _ours, "torch": _with_torch},
        truth=lambda inputs: _ours(inputs, backend="reference"),
        differentiable=("hidden", "weight") if backward else (),
    )


def _make_inputs(shape: Shape, dtype: str, generator: torch.Generator) -> Inputs:
    return {
        "hidden": random_tensor(generator, dtype, shape.rows, shape.width),
        "weight": random_tensor(generator, dtype, shape.vocabulary, shape.width, scale=shape.width**-0.5),
        "target": torch.randint(0, shape.vocabulary, (shape.rows,), generator=generator),
        "grad_output": torch.ones(()),
    }


def _ours(inputs: Inputs, backend: str | None = None) -> Tensor:
    return bmk.linear_cross_entropy(inputs["hidden"], inputs["weight"], inputs["target"], backend=backend)


def _with_torch(inputs: Inputs) -> Tensor:
    # In float32, as training code computes it: torch's cross_entropy of bf16 logits rounds the loss to bf16.
    return F.cross_entropy(F.linear(inputs["hidden"], inputs["weight"]).float(), inputs["target"])
