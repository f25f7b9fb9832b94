"""Whole modules of bigmodel_kernels.nn against the torch.nn modules that they replace, with the same parameters."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

import bigmodel_kernels as bmk

from .case import Case, Inputs, item_bytes, random_tensor

_FEED_FORWARD_FACTOR = 4


@dataclass(frozen=True)
class Shape:
    """x [batch, length, width], batch first; kind says which module."""

    kind: str
    batch: int
    length: int
    width: int
    heads: int

    def __str__(self) -> str:
        return f"{self.kind} {self.width}/{self.heads}, {self.batch}x{self.length}"

    @property
    def has_feed_forward(self) -> bool:
        return self.kind == "EncoderLayer"


QUICK = [
    Shape("MHA weights", 4, 512, 512, 8),
    Shape("EncoderLayer", 4, 512, 512, 8),
]
# Small enough for torch in 16 bits where the processor has no arithmetic for them: its products then run at 1 GFLOP/s.
QUICK_16_BITS = [
    Shape("MHA weights", 1, 128, 256, 4),
    Shape("EncoderLayer", 1, 128, 256, 4),
]
FULL = [
    *QUICK,
    *QUICK_16_BITS,
    Shape("MHA", 4, 512, 512, 8),
    Shape("MHA", 1, 2048, 1024, 16),
    Shape("MHA", 1, 16, 64, 4),
    Shape("EncoderLayer", 1, 16, 64, 4),
]

CUDA = [
    Shape("MHA", 8, 2048, 1024, 16),
    Shape("MHA weights", 4, 1024, 1024, 16),
    Shape("EncoderLayer", 8, 2048, 1024, 16),
]


def cases(quick: bool, dtypes: list[str], device: str = "cpu") -> Iterator[Case]:
    """The rows of the modules. Quick runs on the CPU take small ones in bf16 and fp16: of the others a call of torch's
    can take ten seconds."""
    for dtype in dtypes:
        quick_shapes = QUICK if dtype == "fp32" else QUICK_16_BITS
        for shape in CUDA if device == "cuda" else quick_shapes if quick else FULL:
            for backward in (False, True):
                yield case(shape, dtype, backward)


def case(shape: Shape, dtype: str, backward: bool) -> Case:
    """The row of one shape."""
    ours, theirs = _module(shape, bmk.nn), _module(shape, nn)
    ours.train(backward)
    theirs.train(backward)
    parameters = tuple(name for name, _ in theirs.named_parameters())
    return Case(
        op="nn",
        shape=str(shape),
        dtype=dtype,
        flops=_flops(shape) * (3 if backward else 1),
        bytes=_bytes(shape, dtype, backward),
        make_inputs=lambda generator: _make_inputs(shape, dtype, theirs, generator),
        contenders={"ours": partial(_call, shape, ours), "torch": partial(_call, shape, theirs)},
        truth=partial(_call, shape, theirs),
        differentiable=("x", *parameters) if backward else (),
    )


def _module(shape: Shape, modules) -> nn.Module:
    # Meta parameters: the inputs bring the real ones.
    if shape.has_feed_forward:
        hidden = _FEED_FORWARD_FACTOR * shape.width
        make: Callable[..., nn.Module] = modules.TransformerEncoderLayer
        return make(shape.width, shape.heads, hidden, 0.0, "gelu", batch_first=True, device="meta")
    return modules.MultiheadAttention(shape.width, shape.heads, batch_first=True, device="meta")


def _make_inputs(shape: Shape, dtype: str, module: nn.Module, generator: torch.Generator) -> Inputs:
    size = (shape.batch, shape.length, shape.width)
    inputs = {"x": random_tensor(generator, dtype, *size)}
    for name, parameter in module.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
        inputs[name] = random_tensor(generator, dtype, *parameter.shape, scale=scale)
    if shape.kind == "MHA weights":
        inputs["grad_output 0"] = random_tensor(generator, dtype, *size)
        inputs["grad_output 1"] = random_tensor(generator, dtype, shape.batch, shape.length, shape.length)
    else:
        inputs["grad_output"] = random_tensor(generator, dtype, *size)
    return inputs


def _call(shape: Shape, module: nn.Module, inputs: Inputs) -> Tensor | tuple[Tensor, Tensor]:
    x = inputs["x"]
    parameters = {name: tensor for name, tensor in inputs.items() if name != "x" and not name.startswith("grad_")}
    if shape.has_feed_forward:
        return functional_call(module, parameters, (x,))
    output, weights = functional_call(module, parameters, (x, x, x), {"need_weights": shape.kind == "MHA weights"})
    return output if weights is None else (output, weights)


def _weight_elements(shape: Shape) -> int:
    return (4 + (2 * _FEED_FORWARD_FACTOR if shape.has_feed_forward else 0)) * shape.width**2


def _flops(shape: Shape) -> int:
    rows = shape.batch * shape.length
    return 2 * rows * _weight_elements(shape) + 4 * rows * shape.length * shape.width


def _bytes(shape: Shape, dtype: str, backward: bool) -> int:
    """x and the parameters read, the output written; backward as much again, and the parameters' gradients."""
    x = shape.batch * shape.length * shape.width
    forward = 2 * x + _weight_elements(shape)
    return (forward * (3 if backward else 1)) * item_bytes(dtype)
