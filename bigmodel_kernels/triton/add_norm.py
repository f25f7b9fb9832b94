"""add_norm: the residual sum and its normalisation in one pass; csrc/include/bigmodel/add_norm.h is the contract.

A row that fits into a program's registers is read once. A wider one is read twice: first its statistics are merged
chunk by chunk (Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances", 1979), then it
is normalised.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import norm_launch, run
from .matrices import far_columns, inside, matrix, nothing, row_pointers, vector
from .tiles import index, narrow


@triton.jit
def _load_sum(input, residual, total, columns, input_column_stride, residual_column_stride, mask, STORE: tl.constexpr):
    """input + residual in fp32, as it is stored in total. Zero outside the mask."""
    x = tl.load(input + columns[None, :] * input_column_stride, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        addend = tl.load(residual + columns[None, :] * residual_column_stride, mask=mask, other=0.0)
        stored = narrow(x + addend.to(tl.float32), total.dtype.element_ty)
        if STORE:
            tl.store(total + columns[None, :], stored, mask=mask)
        x = stored.to(tl.float32)
    return x


@triton.jit
def _moments(x, columns, width, count, RMS: tl.constexpr):
    """Mean, and sum of squares about it, of the `count` elements inside each row of x; about zero for RMS."""
    if RMS:
        mean = tl.zeros([x.shape[0]], tl.float32)
        squares = tl.sum(x * x, axis=1)
    else:
        mean = tl.sum(x, axis=1) / count
        centred = tl.where((columns < width)[None, :], x - mean[:, None], 0.0)
        squares = tl.sum(centred * centred, axis=1)
    return mean, squares


@triton.jit
def load_parameter(x, columns, width):
    """A Vector's elements as one row, in fp32."""
    return tl.load(x.data + columns * x.stride, mask=columns < width, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _store_normed(normed, weight, bias, x, mean, rstd, columns, width, mask):
    y = (x - mean[:, None]) * rstd[:, None]
    if weight.data is not None:
        y *= load_parameter(weight, columns, width)
    if bias.data is not None:
        y += load_parameter(bias, columns, width)
    tl.store(normed + columns[None, :], narrow(y, normed.dtype.element_ty), mask=mask)


@triton.jit
def add_norm_kernel(
    input,
    residual,
    weight,
    bias,
    total,
    normed,
    mean_out,
    rstd_out,
    row_count,
    width,
    eps,
    RMS: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    input_rows, residual_rows = row_pointers(input, rows), row_pointers(residual, rows)
    total_rows, normed_rows = row_pointers(total, rows), row_pointers(normed, rows)
    lanes = index(tl.arange(0, BLOCK_COLUMNS), WIDE)

    if WHOLE_ROWS:
        mask = inside(rows, lanes, row_count, width)
        x = _load_sum(
            input_rows, residual_rows, total_rows, lanes, input.column_stride, residual.column_stride, mask, True
        )
        mean, squares = _moments(x, lanes, width, width, RMS)
    else:
        mean = tl.zeros([BLOCK_ROWS], tl.float32)
        squares = tl.zeros([BLOCK_ROWS], tl.float32)
        for start in range(0, width, BLOCK_COLUMNS):
            columns = start + lanes
            mask = inside(rows, columns, row_count, width)
            x = _load_sum(
                input_rows, residual_rows, total_rows, columns, input.column_stride, residual.column_stride, mask, True
            )
            count = tl.minimum(BLOCK_COLUMNS, width - start)
            chunk_mean, chunk_squares = _moments(x, columns, width, count, RMS)
            delta = chunk_mean - mean
            share = count / (start + count)
            mean += delta * share
            squares += chunk_squares + delta * delta * (share * start)

    rstd = tl.rsqrt(squares / width + eps)
    if not RMS:
        tl.store(mean_out + rows, mean, mask=rows < row_count)
    tl.store(rstd_out + rows, rstd, mask=rows < row_count)
    if WHOLE_ROWS:
        _store_normed(normed_rows, weight, bias, x, mean, rstd, lanes, width, mask)
    else:
        for start in range(0, width, BLOCK_COLUMNS):
            columns = start + lanes
            mask = inside(rows, columns, row_count, width)
            x = _load_sum(
                input_rows, residual_rows, total_rows, columns, input.column_stride, residual.column_stride, mask, False
            )
            _store_normed(normed_rows, weight, bias, x, mean, rstd, columns, width, mask)


def add_norm(
    input: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    kind: str = "layer",
    eps: float = 1e-05,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shapes: input, residual, sum, normed [..., width]; weight, bias [width]; mean, rstd [...] in fp32. sum has zero
    elements without a residual, mean for kind "rms".
    """
    leading, width = input.shape[:-1], input.shape[-1]
    total = nothing(input) if residual is None else input.new_empty(input.shape)
    normed = input.new_empty(input.shape)
    mean = nothing(input) if kind == "rms" else input.new_empty(leading, dtype=torch.float32)
    rstd = input.new_empty(leading, dtype=torch.float32)
    row_count = rstd.numel()
    if row_count == 0:
        return total, normed, mean, rstd
    blocks = norm_launch(width)
    read = matrix(input), matrix(residual), vector(weight), vector(bias)
    run(
        add_norm_kernel,
        (triton.cdiv(row_count, blocks.block_rows),),
        *read,
        matrix(None if residual is None else total),
        matrix(normed),
        mean,
        rstd,
        row_count,
        width,
        eps,
        RMS=kind == "rms",
        WHOLE_ROWS=blocks.block_columns >= width,
        WIDE=far_columns(width, *read),
        BLOCK_ROWS=blocks.block_rows,
        BLOCK_COLUMNS=blocks.block_columns,
        num_warps=blocks.num_warps,
    )
    return total, normed, mean, rstd
