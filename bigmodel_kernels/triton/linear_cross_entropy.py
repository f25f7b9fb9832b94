"""linear_cross_entropy: the cross-entropy of a linear layer's logits, which never are in memory all at once;
csrc/include/bigmodel/linear_cross_entropy.h is the contract.

A program goes through a part of the vocabulary, block by block, for a block of rows, and keeps of their logits a
running maximum and sum of exponentials (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018), the
target's logit and, for label smoothing, the sum. The vocabulary is in more parts the fewer rows there are, so that few
rows still fill the device; a second kernel merges a row's parts in their order.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import device_facts, run
from .linear import load_bias
from .matrices import Vector, matrix, transposed, vector
from .online_softmax import LOWEST, start_softmax
from .product import Block, Plan, accumulate, block_of_program, plan
from .scores import LN2, LOG2E, tanh

# Programs per multiprocessor that the vocabulary is divided for: enough to have the last ones end at nearly one time.
_PROGRAMS_EACH = 4
_MERGED_ROWS, _MERGED_PARTS = 32, 32
# What is kept of the rows beside the products would spill within the limit that products in fp32 have.
_FLOAT32_REGISTERS = 255


class Parts(NamedTuple):
    """What is known of a row's logits in each part of the vocabulary: [parts, rows] each, in fp32. total: of the
    exponentials relative to the maximum; target: the target's logit, 0 in the other parts; sum: of the logits, None
    where nothing asks for it. The maximum is a logit itself, not in units of log2: the loss, a small difference of
    large logits, would show the rounding."""

    maximum: Any
    total: Any
    target: Any
    sum: Any


class Targets(NamedTuple):
    """data: a pointer to int64 or a tensor, by row, `stride` apart; a row whose target is `ignored` has no loss. One
    that is outside the vocabulary, which the host does not look for, gives NaN."""

    data: Any
    stride: Any
    ignored: Any


@triton.jit
def load_targets(targets, block, BLOCKS: tl.constexpr):
    """(targets [rows] of a block, which of its rows exist and are not ignored)"""
    lanes = tl.arange(0, BLOCKS.M)
    at = targets.data + (block.row + lanes).to(tl.int64) * targets.stride
    found = tl.load(at, mask=lanes < block.row_end, other=0)
    return found, (lanes < block.row_end) & (found != targets.ignored)


@triton.jit
def block_of_logits(hidden, weight, bias, block, depth, BLOCKS: tl.constexpr):
    """hidden weight + bias of a block of logits before softcap, with weight [depth, vocabulary]."""
    logits = accumulate(hidden, weight, block, depth, BLOCKS)
    if bias.data is not None:
        logits += load_bias(bias, block, BLOCKS)
    return logits


@triton.jit
def cross_entropy_parts_kernel(
    hidden,
    weight,
    bias,
    targets,
    parts,
    cap,
    row_count,
    column_count,
    depth,
    part_count,
    part_columns,
    SOFTCAP: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """One part of a block of rows, with weight [depth, vocabulary]. Programs are ordered as if each part were one block
    of columns."""
    place = block_of_program(row_count, part_count * BLOCKS.N, BLOCKS)
    part = place.column // BLOCKS.N
    target, _ = load_targets(targets, place, BLOCKS)
    maximum, total = start_softmax(BLOCKS.M)
    target_logit = tl.zeros((BLOCKS.M,), tl.float32)
    logit_sum = tl.zeros((BLOCKS.M,), tl.float32)
    first = part * part_columns
    for column in range(first, tl.minimum(first + part_columns, column_count), BLOCKS.N):
        block = Block(place.row, column, place.row_end, column_count - column)
        x = block_of_logits(hidden, weight, bias, block, depth, BLOCKS)
        if SOFTCAP:
            x = cap * tanh(x / cap)
        columns = column + tl.arange(0, BLOCKS.N)
        exists = (columns < column_count)[None, :]
        if parts.sum is not None:
            logit_sum += tl.sum(tl.where(exists, x, 0.0), 1)
        target_logit += tl.sum(tl.where(columns[None, :] == target[:, None], x, 0.0), 1)
        x = tl.where(exists, x, float("-inf"))
        grown = tl.maximum(maximum, tl.max(x, 1))
        total = total * tl.exp2((maximum - grown) * LOG2E) + tl.sum(tl.exp2((x - grown[:, None]) * LOG2E), 1)
        maximum = grown
    lanes = tl.arange(0, BLOCKS.M)
    at = part.to(tl.int64) * row_count + place.row + lanes
    tl.store(parts.maximum + at, maximum, mask=lanes < place.row_end)
    tl.store(parts.total + at, total, mask=lanes < place.row_end)
    tl.store(parts.target + at, target_logit, mask=lanes < place.row_end)
    if parts.sum is not None:
        tl.store(parts.sum + at, logit_sum, mask=lanes < place.row_end)


@triton.jit
def _load_parts(x, first, part_count, rows, row_count, other, BLOCK_PARTS: tl.constexpr):
    """Some parts of some rows, [parts, rows]."""
    parts = first + tl.arange(0, BLOCK_PARTS)[:, None]
    at = parts.to(tl.int64) * row_count + rows[None, :]
    return tl.load(x + at, mask=(parts < part_count) & (rows < row_count)[None, :], other=other)


@triton.jit
def merge_cross_entropy_kernel(
    parts,
    targets,
    loss,
    lse,
    label_smoothing,
    z_loss,
    row_count,
    part_count,
    column_count,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """loss and lse [rows], from the parts in their order."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    highest = tl.full((BLOCK_PARTS, BLOCK_ROWS), LOWEST, tl.float32)
    for first in range(0, part_count, BLOCK_PARTS):
        found = _load_parts(parts.maximum, first, part_count, rows, row_count, LOWEST, BLOCK_PARTS)
        highest = tl.maximum(highest, found)
    maximum = tl.max(highest, 0)
    total = tl.zeros((BLOCK_PARTS, BLOCK_ROWS), tl.float32)
    target_logit = tl.zeros((BLOCK_PARTS, BLOCK_ROWS), tl.float32)
    logit_sum = tl.zeros((BLOCK_PARTS, BLOCK_ROWS), tl.float32)
    for first in range(0, part_count, BLOCK_PARTS):
        found = _load_parts(parts.maximum, first, part_count, rows, row_count, LOWEST, BLOCK_PARTS)
        sums = _load_parts(parts.total, first, part_count, rows, row_count, 0.0, BLOCK_PARTS)
        total += sums * tl.exp2((found - maximum[None, :]) * LOG2E)
        target_logit += _load_parts(parts.target, first, part_count, rows, row_count, 0.0, BLOCK_PARTS)
        if parts.sum is not None:
            logit_sum += _load_parts(parts.sum, first, part_count, rows, row_count, 0.0, BLOCK_PARTS)
    row_lse = maximum + tl.log2(tl.sum(total, 0)) * LN2
    row_loss = row_lse - (1.0 - label_smoothing) * tl.sum(target_logit, 0) + z_loss * row_lse * row_lse
    if parts.sum is not None:  # else a logit of -inf would give 0 * inf
        row_loss -= label_smoothing * (tl.sum(logit_sum, 0) / column_count)
    exists = rows < row_count
    target = tl.load(targets.data + rows.to(tl.int64) * targets.stride, mask=exists, other=0)
    row_loss = tl.where((target >= 0) & (target < column_count), row_loss, float("nan"))
    tl.store(loss + rows, tl.where(target == targets.ignored, 0.0, row_loss), mask=exists)
    tl.store(lse + rows, row_lse, mask=exists)


def targets_of(target: Tensor, ignore_index: int) -> Targets:
    """target [...] as kernels take it."""
    return Targets(*flat(target), ignore_index)


def flat(x: Tensor) -> Vector:
    """[...] as a vector: a view where the strides allow it."""
    return vector(x.reshape(-1))


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Shapes: hidden [..., width]; weight [vocabulary, width]; bias [vocabulary]; target [...]. Returns loss and lse
    [...] in fp32."""
    loss, lse = (hidden.new_empty(hidden.shape[:-1], dtype=torch.float32) for _ in range(2))
    if loss.numel() == 0:
        return loss, lse
    x, w, targets = matrix(hidden), transposed(matrix(weight)), targets_of(target, ignore_index)
    (rows, depth), columns = x.data.shape, weight.shape[0]
    how = plan("epilogue", hidden.dtype, hidden.device, rows, columns, depth, x, w)
    part_count, part_columns = _divided(columns, triton.cdiv(rows, how.blocks.M), how, hidden.device)
    found = hidden.new_empty(4 if label_smoothing > 0 else 3, part_count, rows, dtype=torch.float32)
    parts = Parts(found[0], found[1], found[2], found[3] if label_smoothing > 0 else None)
    run(
        cross_entropy_parts_kernel,
        (triton.cdiv(rows, how.blocks.M) * part_count,),
        x,
        w,
        vector(bias),
        targets,
        parts,
        float(softcap),
        rows,
        columns,
        depth,
        part_count,
        part_columns,
        SOFTCAP=softcap > 0,
        BLOCKS=how.blocks,
        **how.options | {"max_registers": how.options["max_registers"] and _FLOAT32_REGISTERS},
    )
    run(
        merge_cross_entropy_kernel,
        (triton.cdiv(rows, _MERGED_ROWS),),
        parts,
        targets,
        loss,
        lse,
        float(label_smoothing),
        float(z_loss),
        rows,
        part_count,
        columns,
        BLOCK_PARTS=_MERGED_PARTS,
        BLOCK_ROWS=_MERGED_ROWS,
        num_warps=4,
    )
    return loss, lse


def _divided(columns: int, block_rows: int, how: Plan, device: torch.device) -> tuple[int, int]:
    """(parts of the vocabulary, columns of each but perhaps the last): whole blocks, and no part is empty."""
    blocks = triton.cdiv(columns, how.blocks.N)
    parts = min(blocks, triton.cdiv(_PROGRAMS_EACH * device_facts(device)[1], block_rows))
    each = triton.cdiv(blocks, parts)
    return triton.cdiv(blocks, each), each * how.blocks.N
