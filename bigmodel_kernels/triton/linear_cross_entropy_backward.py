"""linear_cross_entropy_backward: the logits are computed again, some columns of the vocabulary at a time, and their
gradient, in the dtype of the inputs, is what the products that give the gradients of hidden and weight read.

A pass is of as many columns as make 64 MiB of gradient, and of at least 512, so that its products fill the device. In
fp32 it is of at most 1024: a row's sum over the vocabulary holds one large term, the target's, and thousands of small
ones, each of which would be rounded against it; what 16 bits lose of each term is more than that. A pass completes its
columns of grad_weight and grad_bias; grad_hidden is summed up over the passes, in fp32.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .add_norm_backward import column_sums_kernel
from .launch import run
from .linear_cross_entropy import Targets, block_of_logits, flat, load_targets, targets_of
from .matrices import Matrix, Vector, matrix, nothing, transposed, vector
from .product import accumulate, block_of_program, load_like, plan, store_like
from .scores import LOG2E, tanh

_GRADIENT_BYTES, _FEWEST_COLUMNS, _MOST_FLOAT32_COLUMNS = 64 << 20, 512, 1024
_TILE_COLUMNS = 128  # passes begin at multiples of it, so that what they read is aligned as the whole is


class Rule(NamedTuple):
    """The options of the loss, and how many columns the vocabulary has."""

    label_smoothing: float
    z_loss: float
    cap: float
    vocabulary: int


@triton.jit
def gradient_scale_kernel(grad_loss, lse, targets, scale, z_loss, row_count, BLOCK: tl.constexpr):
    """A power of two that brings the gradients of the logits into fp16's range, however small grad_loss is."""
    largest = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, row_count, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        at, exists = rows.to(tl.int64), rows < row_count
        target = tl.load(targets.data + at * targets.stride, mask=exists, other=0)
        grad = tl.load(grad_loss.data + at * grad_loss.stride, mask=exists, other=0.0)
        row_lse = tl.load(lse.data + at * lse.stride, mask=exists, other=0.0)
        size = tl.abs(grad) * (1.0 + 2.0 * z_loss * tl.abs(row_lse))
        largest = tl.where(exists & (target != targets.ignored) & (size > largest), size, largest)
    most = tl.max(largest, 0)
    exponent = (most.to(tl.int32, bitcast=True) >> 23) - 127
    power = ((12 - exponent + 127) << 23).to(tl.float32, bitcast=True)
    tl.store(scale, tl.where((exponent > -100) & (exponent < 100), power, 1.0))


@triton.jit
def logits_gradient_kernel(
    hidden,
    weight,
    bias,
    targets,
    lse,
    grad_loss,
    scale,
    rule,
    gradient,
    bias_parts,
    row_count,
    first,
    column_count,
    depth,
    SOFTCAP: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """The gradient of the logits before softcap in the columns that begin at `first`, times scale where there is one;
    weight [depth, columns] and bias are of these. bias_parts: its sums over each block of rows, without the scale."""
    block = block_of_program(row_count, column_count, BLOCKS)
    x = block_of_logits(hidden, weight, bias, block, depth, BLOCKS)
    slope = 1.0
    if SOFTCAP:
        t = tanh(x / rule.cap)
        x = rule.cap * t
        slope = 1.0 - t * t
    lanes = tl.arange(0, BLOCKS.M)
    at = (block.row + lanes).to(tl.int64)
    target, counted = load_targets(targets, block, BLOCKS)
    row_lse = tl.load(lse.data + at * lse.stride, mask=counted, other=0.0)
    grad = tl.load(grad_loss.data + at * grad_loss.stride, mask=counted, other=0.0)
    grad = tl.where((target >= 0) & (target < rule.vocabulary), grad, float("nan"))
    probability = tl.exp2((x - row_lse[:, None]) * LOG2E)
    g = probability * (1.0 + 2.0 * rule.z_loss * row_lse)[:, None] - rule.label_smoothing / rule.vocabulary
    columns = block.column + tl.arange(0, BLOCKS.N)
    is_target = (first + columns)[None, :] == target[:, None]
    g = tl.where(is_target, g - (1.0 - rule.label_smoothing), g)
    g = tl.where(counted[:, None], g * slope * grad[:, None], 0.0)
    if bias_parts is not None:
        part = tl.cast(block.row // BLOCKS.M, tl.int64) * column_count + columns
        tl.store(bias_parts + part, tl.sum(g, 0), mask=columns < column_count)
    if gradient.data is not None:
        if scale is not None:
            g *= tl.load(scale)
        store_like(gradient, g, block, BLOCKS)


@triton.jit
def summed_product_kernel(left, right, so_far, scale, output, row_count, column_count, depth, BLOCKS: tl.constexpr):
    """output = (left right + so_far) / scale; so_far, which may be the output, and scale may be absent."""
    block = block_of_program(row_count, column_count, BLOCKS)
    y = accumulate(left, right, block, depth, BLOCKS)
    if so_far.data is not None:
        y += load_like(so_far, block, BLOCKS)
    if scale is not None:
        y /= tl.load(scale)  # exact, of a power of two
    store_like(output, y, block, BLOCKS)


class Loss(NamedTuple):
    """What every pass reads beside its columns: hidden [rows, width], by row the targets, lse and grad_loss, and the
    gradients' scale, [1] or None."""

    hidden: Matrix
    targets: Targets
    lse: Vector
    grad_loss: Vector
    scale: Tensor | None
    rule: Rule


def pass_columns(rows: int, vocabulary: int, dtype: torch.dtype) -> int:
    """How many columns of the vocabulary a pass is of: of equal passes, but for rounding."""
    most = max(_GRADIENT_BYTES // (rows * dtype.itemsize), _FEWEST_COLUMNS)
    if dtype == torch.float32:
        most = min(most, _MOST_FLOAT32_COLUMNS)
    each = triton.cdiv(vocabulary, triton.cdiv(vocabulary, most))
    return min(vocabulary, triton.cdiv(each, _TILE_COLUMNS) * _TILE_COLUMNS)


def _gradient_scale(rows: int, targets: Targets, lse: Vector, grad_loss: Vector, z_loss: float) -> Tensor:
    scale = lse.data.new_empty(1)
    run(gradient_scale_kernel, (1,), grad_loss, lse, targets, scale, z_loss, rows, BLOCK=1024, num_warps=4)
    return scale


def _logits_gradient(
    loss: Loss, weight: Tensor, bias: Tensor | None, first: int, gradient: Tensor | None, grad_bias: Tensor | None
) -> None:
    """Fills the gradient [rows, columns] and grad_bias [columns] of a pass: weight and bias are of its columns."""
    (rows, depth), columns = loss.hidden.data.shape, weight.shape[0]
    x, w, g = loss.hidden, transposed(matrix(weight)), matrix(gradient)
    how = plan("epilogue", weight.dtype, weight.device, rows, columns, depth, x, w, g)
    block_rows = triton.cdiv(rows, how.blocks.M)
    parts = None if grad_bias is None else loss.lse.data.new_empty(block_rows, columns)
    run(
        logits_gradient_kernel,
        how.grid,
        x,
        w,
        vector(bias),
        loss.targets,
        loss.lse,
        loss.grad_loss,
        loss.scale,
        loss.rule,
        g,
        parts,
        rows,
        first,
        columns,
        depth,
        SOFTCAP=loss.rule.cap > 0,
        BLOCKS=how.blocks,
        **how.options,
    )
    if parts is not None:
        grid = (triton.cdiv(columns, 64),)
        run(column_sums_kernel, grid, parts, grad_bias, block_rows, columns, BLOCK_PARTS=32, BLOCK_COLUMNS=64)


def _summed_product(left: Tensor, right: Tensor, so_far: Tensor | None, scale: Tensor | None, output: Tensor) -> None:
    """output [rows, columns] = (left [rows, depth] right [depth, columns] + so_far) / scale."""
    a, b, addend, y = matrix(left), matrix(right), matrix(so_far), matrix(output)
    (rows, depth), columns = left.shape, right.shape[1]
    kind = "plain" if so_far is None and scale is None else "epilogue"
    how = plan(kind, left.dtype, left.device, rows, columns, depth, a, b, addend, y)
    run(
        summed_product_kernel,
        how.grid,
        a,
        b,
        addend,
        scale,
        y,
        rows,
        columns,
        depth,
        BLOCKS=how.blocks,
        **how.options,
    )


def linear_cross_entropy_backward(
    grad_loss: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    lse: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    output_mask: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias, with zero elements where they are not wanted."""
    want_hidden, want_weight, want_bias = output_mask[0], output_mask[1], output_mask[2] and bias is not None
    make = torch.zeros if lse.numel() == 0 else torch.empty
    grad_hidden, grad_weight, grad_bias = (
        make(like.shape, dtype=like.dtype, device=like.device) if want else nothing(hidden)
        for want, like in ((want_hidden, hidden), (want_weight, weight), (want_bias, bias))
    )
    if lse.numel() == 0 or not (want_hidden or want_weight or want_bias):
        return grad_hidden, grad_weight, grad_bias
    vocabulary, width = weight.shape
    x, rows = hidden.reshape(-1, width), lse.numel()
    targets, by_row = targets_of(target, ignore_index), (flat(lse), flat(grad_loss))
    scale = _gradient_scale(rows, targets, *by_row, float(z_loss)) if hidden.dtype == torch.float16 else None
    rule = Rule(float(label_smoothing), float(z_loss), float(softcap), vocabulary)
    loss = Loss(matrix(x), targets, *by_row, scale, rule)
    step = pass_columns(rows, vocabulary, hidden.dtype)
    memory = hidden.new_empty(rows * step) if want_hidden or want_weight else None
    output = grad_hidden.view(rows, width) if want_hidden else None
    in_output = output is None or hidden.dtype == torch.float32 or step == vocabulary
    sums = output if in_output else x.new_empty(x.shape, dtype=torch.float32)
    for first in range(0, vocabulary, step):
        columns = slice(first, min(first + step, vocabulary))
        count, last = columns.stop - first, columns.stop == vocabulary
        gradient = None if memory is None else memory[: rows * count].view(rows, count)
        of_bias = None if bias is None else bias[columns]
        _logits_gradient(loss, weight[columns], of_bias, first, gradient, grad_bias[columns] if want_bias else None)
        if want_weight:
            _summed_product(gradient.t(), x, None, scale, grad_weight[columns])
        if want_hidden:
            so_far, last_scale = sums if first > 0 else None, scale if last else None
            _summed_product(gradient, weight[columns], so_far, last_scale, output if last else sums)
    return grad_hidden, grad_weight, grad_bias
