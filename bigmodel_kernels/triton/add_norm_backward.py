"""add_norm_backward: the input's gradient and, in the same pass, each program's part of the parameters' gradients.

With g = grad_normed * weight and n = (sum - mean) * rstd, averages over the row:
    grad_input = rstd * (g - average(g) - n * average(g * n)) + grad_sum,     without average(g) for kind "rms".
Every program sums grad_normed * n and grad_normed over the rows that it visits; a second kernel adds the programs'
parts, in their order, so that the result is the same at every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .add_norm import load_parameter
from .launch import norm_launch, programs, run
from .matrices import far_columns, inside, matrix, nothing, row_pointers, vector
from .tiles import index, narrow


@triton.jit
def _load_row_block(grad_normed, total, mean, rstd, columns, grad_column_stride, total_column_stride, mask):
    """(grad_normed, normalised sum before weight and bias) in fp32, zero outside the mask."""
    grad = tl.load(grad_normed + columns[None, :] * grad_column_stride, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(total + columns[None, :] * total_column_stride, mask=mask, other=0.0).to(tl.float32)
    return grad, tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)


@triton.jit
def _times_weight(grad, weight, columns, width):
    if weight.data is not None:
        grad *= load_parameter(weight, columns, width)
    return grad


@triton.jit
def _store_grad_input(grad_input, grad_sum, grad, n, mean_g, mean_gn, rstd, columns, grad_sum_column_stride, mask):
    """From grad, which is g, and the averages over the row."""
    if grad_input is not None:
        grad = rstd[:, None] * (grad - mean_g[:, None] - n * mean_gn[:, None])
        if grad_sum is not None:
            further = tl.load(grad_sum + columns[None, :] * grad_sum_column_stride, mask=mask, other=0.0)
            grad += further.to(tl.float32)
        tl.store(grad_input + columns[None, :], narrow(grad, grad_input.dtype.element_ty), mask=mask)


@triton.jit
def _add_to_parts(parts, terms, columns, width):
    """Adds the column sums of terms to this program's row of parts, which no other program touches."""
    if parts is not None:
        inside_row = columns < width
        sums = tl.load(parts + columns, mask=inside_row, other=0.0) + tl.sum(terms, axis=0)
        tl.store(parts + columns, sums, mask=inside_row)


@triton.jit
def add_norm_backward_kernel(
    grad_normed,
    grad_sum,
    total,
    weight,
    mean_in,
    rstd_in,
    grad_input,
    weight_parts,
    bias_parts,
    row_count,
    width,
    RMS: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    program = tl.program_id(0)
    lanes = index(tl.arange(0, BLOCK_COLUMNS), WIDE)
    if weight_parts is not None:
        weight_parts += program.to(tl.int64) * width
    if bias_parts is not None:
        bias_parts += program.to(tl.int64) * width
    weight_sums = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    bias_sums = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)

    for first in range(program * BLOCK_ROWS, row_count, tl.num_programs(0) * BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        grad_rows, grad_sum_rows = row_pointers(grad_normed, rows), row_pointers(grad_sum, rows)
        total_rows, grad_input_rows = row_pointers(total, rows), row_pointers(grad_input, rows)
        rstd = tl.load(rstd_in + rows, mask=rows < row_count, other=0.0)
        mean = tl.zeros([BLOCK_ROWS], tl.float32) if RMS else tl.load(mean_in + rows, mask=rows < row_count, other=0.0)

        if WHOLE_ROWS:
            mask = inside(rows, lanes, row_count, width)
            grad, n = _load_row_block(
                grad_rows, total_rows, mean, rstd, lanes, grad_normed.column_stride, total.column_stride, mask
            )
            weight_sums += grad * n
            bias_sums += grad
            grad = _times_weight(grad, weight, lanes, width)
            mean_gn = tl.sum(grad * n, axis=1) / width
            mean_g = tl.zeros([BLOCK_ROWS], tl.float32) if RMS else tl.sum(grad, axis=1) / width
            _store_grad_input(
                grad_input_rows, grad_sum_rows, grad, n, mean_g, mean_gn, rstd, lanes, grad_sum.column_stride, mask
            )
        else:
            mean_gn = tl.zeros([BLOCK_ROWS], tl.float32)
            mean_g = tl.zeros([BLOCK_ROWS], tl.float32)
            for start in range(0, width, BLOCK_COLUMNS):
                columns = start + lanes
                mask = inside(rows, columns, row_count, width)
                grad, n = _load_row_block(
                    grad_rows, total_rows, mean, rstd, columns, grad_normed.column_stride, total.column_stride, mask
                )
                _add_to_parts(weight_parts, grad * n, columns, width)
                _add_to_parts(bias_parts, grad, columns, width)
                grad = _times_weight(grad, weight, columns, width)
                mean_gn += tl.sum(grad * n, axis=1) / width
                if not RMS:
                    mean_g += tl.sum(grad, axis=1) / width
            for start in range(0, width, BLOCK_COLUMNS):
                columns = start + lanes
                mask = inside(rows, columns, row_count, width)
                grad, n = _load_row_block(
                    grad_rows, total_rows, mean, rstd, columns, grad_normed.column_stride, total.column_stride, mask
                )
                grad = _times_weight(grad, weight, columns, width)
                _store_grad_input(
                    grad_input_rows,
                    grad_sum_rows,
                    grad,
                    n,
                    mean_g,
                    mean_gn,
                    rstd,
                    columns,
                    grad_sum.column_stride,
                    mask,
                )
    if WHOLE_ROWS:
        _add_to_parts(weight_parts, weight_sums, lanes, width)
        _add_to_parts(bias_parts, bias_sums, lanes, width)


@triton.jit
def column_sums_kernel(parts, output, part_count, width, BLOCK_PARTS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """output [width] = the sum over the rows of parts [part_count, width]."""
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    sums = tl.zeros([BLOCK_PARTS, BLOCK_COLUMNS], tl.float32)
    for first in range(0, part_count, BLOCK_PARTS):
        rows = first + tl.arange(0, BLOCK_PARTS)
        offsets = rows[:, None].to(tl.int64) * width + columns[None, :]
        sums += tl.load(parts + offsets, mask=inside(rows, columns, part_count, width), other=0.0)
    tl.store(output + columns, narrow(tl.sum(sums, axis=0), output.dtype.element_ty), mask=columns < width)


def add_norm_backward(
    grad_normed: Tensor,
    grad_sum: Tensor | None,
    sum: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    kind: str = "layer",
    output_mask: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input (and residual), weight and bias, with zero elements where they are not wanted. The bias has
    the weight's dtype, or without a weight that of sum.
    """
    width = sum.shape[-1]
    want_input, want_weight, want_bias = output_mask[0], output_mask[1] and weight is not None, output_mask[2]
    parameter = sum if weight is None else weight
    grad_input = sum.new_empty(sum.shape) if want_input else nothing(sum)
    grad_weight = parameter.new_empty(width) if want_weight else nothing(sum)
    grad_bias = parameter.new_empty(width) if want_bias else nothing(sum)
    row_count = rstd.numel()
    if row_count == 0:
        return grad_input, grad_weight.zero_(), grad_bias.zero_()

    blocks = norm_launch(width)
    count = min(programs(sum.device), triton.cdiv(row_count, blocks.block_rows))
    parts = [sum.new_zeros(count, width, dtype=torch.float32) if want else None for want in (want_weight, want_bias)]
    read = matrix(grad_normed), matrix(grad_sum), matrix(sum), vector(weight)
    run(
        add_norm_backward_kernel,
        (count,),
        *read,
        mean.contiguous(),
        rstd.contiguous(),
        matrix(grad_input if want_input else None),
        *parts,
        row_count,
        width,
        RMS=kind == "rms",
        WHOLE_ROWS=blocks.block_columns >= width,
        WIDE=far_columns(width, *read),
        BLOCK_ROWS=blocks.block_rows,
        BLOCK_COLUMNS=blocks.block_columns,
        num_warps=blocks.num_warps,
    )
    for part, output in zip(parts, (grad_weight, grad_bias), strict=True):
        if part is not None:
            run(
                column_sums_kernel,
                (triton.cdiv(width, 64),),
                part,
                output,
                count,
                width,
                BLOCK_PARTS=32,
                BLOCK_COLUMNS=64,
            )
    return grad_input, grad_weight, grad_bias
