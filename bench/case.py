"""One row of the benchmark: an op on certain inputs, and the contenders that compute it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Inputs = dict[str, Tensor | None]
Function = Callable[[Inputs], Tensor | tuple[Tensor, ...]]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LONG_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def _uncropped(name: str, tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Case:
    """A row.

    contenders: name -> function of the inputs; "ours" first, then what a PyTorch user would call instead.
    truth: the same function in float64, by the reference.
    make_inputs: new inputs, in the case's dtype, from a generator; for a backward pass also the output's gradient,
        named "grad_output" ("grad_output 0", "grad_output 1" ... where there are several outputs).
    differentiable: the inputs whose gradients the fwd+bwd pass computes; empty for a forward pass.
    flops: useful floating-point operations of the products (causal attention counts half, a backward pass recounts
        nothing that it recomputes); what is elementwise is not counted unless there are no products.
    bytes: every input and output once, and in the backward pass what it must read and write again.
    crop: (name of an input or "output", tensor) -> the part on which truth is computed, where an op's parts are
        independent and all of it in float64 would be slow.
    """

    op: str
    shape: str
    dtype: str
    flops: int
    bytes: int
    make_inputs: Callable[[torch.Generator], Inputs]
    contenders: Mapping[str, Function]
    truth: Function
    differentiable: tuple[str, ...] = ()
    crop: Callable[[str, Tensor], Tensor] = field(default=_uncropped)

    @property
    def pass_name(self) -> str:
        return "fwd+bwd" if self.differentiable else "fwd"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells a row from the others, and finds it in another record."""
        return (self.op, self.shape, self.dtype, self.pass_name)


def item_bytes(dtype: str) -> int:
    """Bytes of one element."""
    return DTYPES[dtype].itemsize


def random_tensor(generator: torch.Generator, dtype: str, *shape: int, scale: float = 1.0) -> Tensor:
    """Normally distributed, drawn in fp32 so that every dtype sees the same values but for their rounding."""
    return (torch.randn(*shape, generator=generator) * scale).to(DTYPES[dtype])
