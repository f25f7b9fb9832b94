"""Matrix products, block by block: which block a program computes, and the sums over the inner dimension."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .activation import value_and_slope
from .launch import matmul_arithmetic, product_launch
from .matrices import Matrix, from_block, inside, pointers
from .tiles import index, load_tile, narrow, product

# The narrowest product that every tensor core computes.
ONES = tl.constexpr(16)


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


class Block(NamedTuple):
    """A block of the result: where it begins, and how many of the matrix's rows and columns there are from there on."""

    row: Any
    column: Any
    row_end: Any
    column_end: Any


class Plan(NamedTuple):
    """How a product is launched."""

    grid: tuple[int]
    blocks: Blocks
    options: dict[str, int | None]


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
    options = {name: getattr(chosen, name) for name in ("num_warps", "num_stages", "max_registers")}
    return Plan((chosen.blocks(m, n),), blocks, options)


@triton.jit
def block_of_program(row_count, column_count, BLOCKS: tl.constexpr):
    """The program's block: GROUP_M block rows go through all columns together, so that what they read of the second
    factor is still in the L2 cache."""
    block_rows = tl.cdiv(row_count, BLOCKS.M)
    block_columns = tl.cdiv(column_count, BLOCKS.N)
    program = tl.program_id(0)
    first = program // (BLOCKS.GROUP_M * block_columns) * BLOCKS.GROUP_M
    height = tl.minimum(block_rows - first, BLOCKS.GROUP_M)
    within = program % (BLOCKS.GROUP_M * block_columns)
    row, column = (first + within % height) * BLOCKS.M, within // height * BLOCKS.N
    return Block(row, column, row_count - row, column_count - column)


@triton.jit
def places(block, BLOCKS: tl.constexpr):
    """(rows and columns of a block's elements, from where it begins; which of the elements exist)"""
    rows = index(tl.arange(0, BLOCKS.M), BLOCKS.WIDE)
    columns = index(tl.arange(0, BLOCKS.N), BLOCKS.WIDE)
    return rows, columns, inside(rows, columns, block.row_end, block.column_end)


@triton.jit
def load_like(x, block, BLOCKS: tl.constexpr):
    """A tile of a Matrix in fp32, in the place of a block of the result."""
    rows, columns, mask = places(block, BLOCKS)
    return tl.load(pointers(from_block(x, block.row, block.column), rows, columns), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_like(x, y, block, BLOCKS: tl.constexpr):
    """Stores y, in fp32, in the place of a block of the result."""
    rows, columns, mask = places(block, BLOCKS)
    at = pointers(from_block(x, block.row, block.column), rows, columns)
    tl.store(at, narrow(y, x.data.dtype.element_ty), mask=mask)


@triton.jit
def load_left(x, start, rows, terms, row_end, depth, BLOCKS: tl.constexpr):
    """The tile of a left factor [rows, depth] whose terms begin at `start`, zero beyond its ends."""
    tile = pointers(from_block(x, 0, start), rows, terms)
    return load_tile(tile, rows[:, None], row_end, terms[None, :], depth - start, not BLOCKS.EVEN_M, not BLOCKS.EVEN_K)


@triton.jit
def load_right(x, start, terms, columns, depth, column_end, BLOCKS: tl.constexpr):
    """The tile of a right factor [depth, columns] whose terms begin at `start`, zero beyond its ends."""
    tile = pointers(from_block(x, start, 0), terms, columns)
    return load_tile(
        tile, terms[:, None], depth - start, columns[None, :], column_end, not BLOCKS.EVEN_K, not BLOCKS.EVEN_N
    )


@triton.jit
def accumulate(a, b, block, depth, BLOCKS: tl.constexpr):
    """A block of a b, in fp32, of two Matrices [rows, depth] and [depth, columns]."""
    a, b = from_block(a, block.row, 0), from_block(b, 0, block.column)
    rows = index(tl.arange(0, BLOCKS.M), BLOCKS.WIDE)
    columns = index(tl.arange(0, BLOCKS.N), BLOCKS.WIDE)
    terms = index(tl.arange(0, BLOCKS.K), BLOCKS.WIDE)
    sums = tl.zeros([BLOCKS.M, BLOCKS.N], tl.float32)
    for start in range(0, depth, BLOCKS.K):
        a_tile = load_left(a, start, rows, terms, block.row_end, depth, BLOCKS)
        b_tile = load_right(b, start, terms, columns, depth, block.column_end, BLOCKS)
        sums = product(a_tile, b_tile, sums, BLOCKS.PRECISION)
    return sums


@triton.jit
def accumulate_pair(a, b, other_b, block, depth, BLOCKS: tl.constexpr):
    """(a block of a b, that of a other_b), reading a once."""
    a, b, other_b = from_block(a, block.row, 0), from_block(b, 0, block.column), from_block(other_b, 0, block.column)
    rows = index(tl.arange(0, BLOCKS.M), BLOCKS.WIDE)
    columns = index(tl.arange(0, BLOCKS.N), BLOCKS.WIDE)
    terms = index(tl.arange(0, BLOCKS.K), BLOCKS.WIDE)
    sums = tl.zeros([BLOCKS.M, BLOCKS.N], tl.float32)
    other_sums = tl.zeros([BLOCKS.M, BLOCKS.N], tl.float32)
    for start in range(0, depth, BLOCKS.K):
        a_tile = load_left(a, start, rows, terms, block.row_end, depth, BLOCKS)
        b_tile = load_right(b, start, terms, columns, depth, block.column_end, BLOCKS)
        other_tile = load_right(other_b, start, terms, columns, depth, block.column_end, BLOCKS)
        sums = product(a_tile, b_tile, sums, BLOCKS.PRECISION)
        other_sums = product(a_tile, other_tile, other_sums, BLOCKS.PRECISION)
    return sums, other_sums


@triton.jit
def start_row_sums(x, BLOCKS: tl.constexpr):
    """Zeros to which add_to_row_sums may add the tiles of a left factor x."""
    LANES: tl.constexpr = BLOCKS.K if x.data.dtype.element_ty == tl.float32 else ONES
    return tl.zeros([BLOCKS.M, LANES], tl.float32)


@triton.jit
def add_to_row_sums(row_sums, tile):
    """row_sums + tile; what is asked for is the sum of each row in the end. 16 bits are multiplied by parts of one, a
    power of two and so exact, because the tensor cores have the tile at hand. They would round fp32 to TF32 where that
    is allowed; but a sum is no product."""
    if tile.dtype == tl.float32:
        row_sums += tile
    else:
        row_sums = product(tile, tl.full([tile.shape[1], ONES], 1.0 / ONES, tile.dtype), row_sums, "ieee")
    return row_sums


@triton.jit
def accumulate_gradient(
    a, preactivation, b, block, depth, ACTIVATION: tl.constexpr, ROW_SUMS: tl.constexpr, BLOCKS: tl.constexpr
):
    """(a block of g b, the sums of its rows of g as add_to_row_sums has them), where g is a times the activation's
    derivative at preactivation, a Matrix of a's shape, or a itself where that is absent. Without ROW_SUMS these are a
    number."""
    a, b = from_block(a, block.row, 0), from_block(b, 0, block.column)
    if preactivation.data is not None:
        preactivation = from_block(preactivation, block.row, 0)
    rows = index(tl.arange(0, BLOCKS.M), BLOCKS.WIDE)
    columns = index(tl.arange(0, BLOCKS.N), BLOCKS.WIDE)
    terms = index(tl.arange(0, BLOCKS.K), BLOCKS.WIDE)
    sums = tl.zeros([BLOCKS.M, BLOCKS.N], tl.float32)
    row_sums = start_row_sums(a, BLOCKS) if ROW_SUMS else 0.0
    for start in range(0, depth, BLOCKS.K):
        g = load_left(a, start, rows, terms, block.row_end, depth, BLOCKS)
        b_tile = load_right(b, start, terms, columns, depth, block.column_end, BLOCKS)
        if preactivation.data is not None:
            z = load_left(preactivation, start, rows, terms, block.row_end, depth, BLOCKS)
            _, slope = value_and_slope(z.to(tl.float32), ACTIVATION)
            g = narrow(g.to(tl.float32) * slope, g.dtype)
        sums = product(g, b_tile, sums, BLOCKS.PRECISION)
        if ROW_SUMS:
            row_sums = add_to_row_sums(row_sums, g)
    return sums, row_sums
