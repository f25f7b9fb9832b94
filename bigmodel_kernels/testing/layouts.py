"""Tensors of random numbers in the memory layouts that callers really have."""

import torch
from torch import Tensor

LAYOUTS = ("contiguous", "heads_inside", "transposed", "strided", "offset")


def random(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    generator: torch.Generator,
    layout: str = "contiguous",
    scale: float = 1.0,
) -> Tensor:
    """Normal numbers of a standard deviation `scale`, as a view of the given layout:

    contiguous; heads_inside: the two dimensions before the last swapped in memory ([batch, length, heads, features], as
    projections leave it); transposed: the last two swapped; strided: every second element of every second row;
    offset: the inner part of a larger tensor, unaligned.
    """

    def draw(*sizes: int) -> Tensor:
        return (torch.randn(sizes, generator=generator, dtype=torch.float64) * scale).to(dtype)

    *leading, last = shape
    if layout == "heads_inside" and len(shape) > 2:
        return draw(*shape[:-3], shape[-2], shape[-3], last).transpose(-3, -2)
    if layout == "transposed" and len(shape) > 1:
        return draw(*shape[:-2], last, shape[-2]).transpose(-2, -1)
    if layout == "strided" and len(shape) > 1:
        return draw(*shape[:-2], 2 * shape[-2], 2 * last)[..., ::2, ::2]
    if layout == "offset":
        return draw(*leading, last + 4)[..., 3 : last + 3]
    return draw(*shape)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """A copy of x in one of random's layouts."""
    return random(tuple(x.shape), x.dtype, torch.Generator().manual_seed(0), layout).copy_(x)
