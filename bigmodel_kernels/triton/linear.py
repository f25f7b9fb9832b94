"""linear: a product with bias, activation and residual in its epilogue; csrc/include/bigmodel/linear.h is the contract.

The same kernel is the products of feed_forward: its epilogue can also multiply by another matrix and drop elements.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .dropout import dropout_constants, dropout_tile, load_seed
from .launch import run
from .matrices import matrix, nothing, transposed, vector
from .product import accumulate, block_of_program, load_like, plan, store_like


class Dropout(NamedTuple):
    """seed: a pointer to the seed, or None for no dropout; threshold and scale: of dropout_constants."""

    seed: Any
    threshold: Any
    scale: Any


NO_DROPOUT = Dropout(None, 0, 1.0)


def dropout_of(seed: Tensor | None, dropout_p: float, device: torch.device) -> Dropout:
    return Dropout(seed.to(device), *dropout_constants(dropout_p)) if dropout_p > 0 else NO_DROPOUT


@triton.jit
def load_bias(bias, block, BLOCKS: tl.constexpr):
    """[1, columns] of a Vector in fp32, by 64-bit offsets."""
    columns = tl.arange(0, BLOCKS.N)
    at = bias.data + (block.column + columns).to(tl.int64) * bias.stride
    return tl.load(at, mask=columns < block.column_end, other=0.0).to(tl.float32)[None, :]


@triton.jit
def dropout_of_block(dropout, block, BLOCKS: tl.constexpr):
    """The factors, in fp32, of a block of hidden units: rows are tokens, and batch and head are 0."""
    low, high = load_seed(dropout.seed)
    tokens = (block.row + tl.arange(0, BLOCKS.M))[:, None]
    return dropout_tile(low, high, 0, 0, tokens, block.column, dropout.threshold, dropout.scale, BLOCKS.N, False)


@triton.jit
def linear_kernel(
    input,
    weight,
    bias,
    factor,
    residual,
    output,
    preactivation,
    dropout,
    row_count,
    column_count,
    depth,
    ACTIVATION: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """output = dropout(activation(input weight + bias) * factor) + residual, with weight [depth, columns]."""
    block = block_of_program(row_count, column_count, BLOCKS)
    y = accumulate(input, weight, block, depth, BLOCKS)
    if bias.data is not None:
        y += load_bias(bias, block, BLOCKS)
    if preactivation.data is not None:
        store_like(preactivation, y, block, BLOCKS)
    y = activate(y, ACTIVATION)
    if factor.data is not None:
        y *= load_like(factor, block, BLOCKS)
    if dropout.seed is not None:
        y *= dropout_of_block(dropout, block, BLOCKS)
    if residual.data is not None:
        y += load_like(residual, block, BLOCKS)
    store_like(output, y, block, BLOCKS)


def run_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    factor: Tensor | None = None,
    activation: str = "none",
    dropout: Dropout = NO_DROPOUT,
    output: Tensor | None = None,
    preactivation: Tensor | None = None,
) -> Tensor:
    """Launches linear_kernel: `weight` is [out_features, in_features]; an output that is not given is made."""
    if output is None:
        output = input.new_empty(*input.shape[:-1], weight.shape[0])
    x, w, y = matrix(input), transposed(matrix(weight)), matrix(output)
    z, by, addend = matrix(preactivation), matrix(factor), matrix(residual)
    (rows, depth), columns = x.data.shape, weight.shape[0]
    plain = activation in ("none", "relu") and dropout.seed is None and residual is None and factor is None
    how = plan(
        "plain" if plain else "epilogue", input.dtype, input.device, rows, columns, depth, x, w, y, z, by, addend
    )
    run(
        linear_kernel,
        how.grid,
        x,
        w,
        vector(bias),
        by,
        addend,
        y,
        z,
        dropout,
        rows,
        columns,
        depth,
        ACTIVATION=activation,
        BLOCKS=how.blocks,
        **how.options,
    )
    return output


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    packed_weight: Tensor | None = None,
    *,
    activation: str = "none",
    save_preactivation: bool = False,
) -> tuple[Tensor, Tensor]:
    """Shapes: input [..., in_features]; weight [out_features, in_features]; bias [out_features]; residual and output
    [..., out_features]. packed_weight, another layout of the weight, is not read here. Returns the output and, if
    asked for, input weight^T + bias (else a tensor of zero elements).
    """
    output = input.new_empty(*input.shape[:-1], weight.shape[0])
    preactivation = torch.empty_like(output) if save_preactivation else nothing(input)
    if output.numel() > 0:
        run_linear(
            input,
            weight,
            bias,
            residual,
            activation=activation,
            output=output,
            preactivation=preactivation if save_preactivation else None,
        )
    return output, preactivation
