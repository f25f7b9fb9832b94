"""Matrix products, block by block: which block a program computes, and the sums over the inner dimension."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .activation import value_and_slope
from .launch import matmul_arithmetic, product_launch
from .matrices import Matrix, pointers
from .tiles import index, load_tile, narrow, product


class Blocks(NamedTuple):
    """What a kernel of products is compiled for: sizes of its blocks; which of the matrix's sizes they divide, so that
    loads need no masks; whether offsets inside a block are 64 bits wide; what fp32 is multiplied in."""

    M: Any
    N: Any
    K: Any
    GROUP_M: Any
    EVEN_M: Any
    EVEN_N: Any
    EVEN_K: Any
    WIDE: Any
    PRECISION: Any


class Plan(NamedTuple):
    """How a product is launched."""

    grid: tuple[int]
    blocks: Blocks
    options: dict[str, int]


def plan(kind: str, dtype: torch.dtype, device: torch.device, m: int, n: int, k: int, *matrices: Matrix) -> Plan:
    """The launch of an m x n product of k terms; `matrices`: all that the kernel reads and writes."""
    arithmetic = matmul_arithmetic(dtype, device)
    chosen = product_launch(device, kind, arithmetic, m, n, k)
    reach = max(chosen.block_m, chosen.block_n, chosen.block_k)
    blocks = Blocks(
        chosen.block_m,
        chosen.block_n,
        chosen.block_k,
        chosen.group_m,
        m % chosen.block_m == 0,
        n % chosen.block_n == 0,
        k % chosen.block_k == 0,
        any(reach * (x.row_stride + x.column_stride) >= 2**31 for x in matrices),
        "tf32" if arithmetic == "tf32" else "ieee",
    )
    return Plan((chosen.blocks(m, n),), blocks, {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages})


@triton.jit
def block_of_program(row_count, column_count, BLOCKS: tl.constexpr):
    """(first row, first column) of the program's block: GROUP_M block rows go through all columns together, so that
    what they read of the second factor is still in the L2 cache."""
    block_rows = tl.cdiv(row_count, BLOCKS.M)
    block_columns = tl.cdiv(column_count, BLOCKS.N)
    program = tl.program_id(0)
    first = program // (BLOCKS.GROUP_M * block_columns) * BLOCKS.GROUP_M
    height = tl.minimum(block_rows - first, BLOCKS.GROUP_M)
    within = program % (BLOCKS.GROUP_M * block_columns)
    return (first + within % height) * BLOCKS.M, within // height * BLOCKS.N


@triton.jit
def load_factor(x, rows, row_end, columns, column_end, EVEN_ROWS: tl.constexpr, EVEN_COLUMNS: tl.constexpr):
    """A tile of a Matrix, zero beyond its ends."""
    tile = pointers(x, rows, columns)
    return load_tile(tile, rows[:, None], row_end, columns[None, :], column_end, not EVEN_ROWS, not EVEN_COLUMNS)


@triton.jit
def advance(x, rows, columns):
    """A Matrix that begins so many rows and columns later, of which one is zero."""
    return Matrix(x.data + rows * x.row_stride + columns * x.column_stride, x.row_stride, x.column_stride)


@triton.jit
def accumulate(sums, a, b, row_end, column_end, depth, BLOCKS: tl.constexpr):
    """sums + a b for a block. a [rows, depth] and b [depth, columns] begin at the block, and row_end and column_end are
    how many of its rows and columns exist."""
    rows = index(tl.arange(0, BLOCKS.M), BLOCKS.WIDE)
    columns = index(tl.arange(0, BLOCKS.N), BLOCKS.WIDE)
    terms = index(tl.arange(0, BLOCKS.K), BLOCKS.WIDE)
    step = tl.full([], BLOCKS.K, tl.int64)
    for start in range(0, depth, BLOCKS.K):
        a_tile = load_factor(a, rows, row_end, terms, depth - start, BLOCKS.EVEN_M, BLOCKS.EVEN_K)
        b_tile = load_factor(b, terms, depth - start, columns, column_end, BLOCKS.EVEN_K, BLOCKS.EVEN_N)
        sums = product(a_tile, b_tile, sums, BLOCKS.PRECISION)
        a = advance(a, 0, step)
        b = advance(b, step, 0)
    return sums


@triton.jit
def accumulate_pair(sums, other_sums, a, b, other_b, row_end, column_end, depth, BLOCKS: tl.constexpr):
    """(sums + a b, other_sums + a other_b) for a block, reading a once."""
    rows = index(tl.arange(0, BLOCKS.M), BLOCKS.WIDE)
    columns = index(tl.arange(0, BLOCKS.N), BLOCKS.WIDE)
    terms = index(tl.arange(0, BLOCKS.K), BLOCKS.WIDE)
    step = tl.full([], BLOCKS.K, tl.int64)
    for start in range(0, depth, BLOCKS.K):
        a_tile = load_factor(a, rows, row_end, terms, depth - start, BLOCKS.EVEN_M, BLOCKS.EVEN_K)
        b_tile = load_factor(b, terms, depth - start, columns, column_end, BLOCKS.EVEN_K, BLOCKS.EVEN_N)
        other_tile = load_factor(other_b, terms, depth - start, columns, column_end, BLOCKS.EVEN_K, BLOCKS.EVEN_N)
        sums = product(a_tile, b_tile, sums, BLOCKS.PRECISION)
        other_sums = product(a_tile, other_tile, other_sums, BLOCKS.PRECISION)
        a = advance(a, 0, step)
        b = advance(b, step, 0)
        other_b = advance(other_b, step, 0)
    return sums, other_sums


@triton.jit
def accumulate_gradient(
    sums,
    row_sums,
    a,
    preactivation,
    b,
    row_end,
    column_end,
    depth,
    ACTIVATION: tl.constexpr,
    ROW_SUMS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """(sums + g b, row_sums + g ones) for a block, where g is a times the activation's derivative at preactivation, a
    Matrix of a's shape, or a itself where that is absent. The sums of g's rows are a product with ones because the
    tensor cores have the operand at hand."""
    rows = index(tl.arange(0, BLOCKS.M), BLOCKS.WIDE)
    columns = index(tl.arange(0, BLOCKS.N), BLOCKS.WIDE)
    terms = index(tl.arange(0, BLOCKS.K), BLOCKS.WIDE)
    step = tl.full([], BLOCKS.K, tl.int64)
    for start in range(0, depth, BLOCKS.K):
        g = load_factor(a, rows, row_end, terms, depth - start, BLOCKS.EVEN_M, BLOCKS.EVEN_K)
        b_tile = load_factor(b, terms, depth - start, columns, column_end, BLOCKS.EVEN_K, BLOCKS.EVEN_N)
        if preactivation.data is not None:
            at = load_factor(preactivation, rows, row_end, terms, depth - start, BLOCKS.EVEN_M, BLOCKS.EVEN_K)
            _, slope = value_and_slope(at.to(tl.float32), ACTIVATION)
            g = narrow(g.to(tl.float32) * slope, g.dtype)
            preactivation = advance(preactivation, 0, step)
        sums = product(g, b_tile, sums, BLOCKS.PRECISION)
        if ROW_SUMS:
            row_sums = product(g, tl.full([BLOCKS.K, row_sums.shape[1]], 1.0, g.dtype), row_sums, BLOCKS.PRECISION)
        a = advance(a, 0, step)
        b = advance(b, step, 0)
    return sums, row_sums
