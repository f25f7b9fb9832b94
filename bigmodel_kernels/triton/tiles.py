"""What kernels do with tiles: load, store, multiply, and take them in an order that suits the cache."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

# Triton's interpreter multiplies bfloat16 by its bits, as integers, and rounds to it with a carry lost; `product` and
# `narrow` do these two by hand there.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Rows(NamedTuple):
    """Rows of a matrix: pointers [rows, 1] to the first feature of each, and how far apart features are."""

    first: Any
    column: Any


@triton.jit
def product(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a b in fp32; accumulator may be None. PRECISION is "ieee" or "tf32" and matters to fp32 alone."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """x, in fp32, rounded to the nearest number of dtype, to even in a tie."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        x = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        x = x.to(dtype)
    return x


@triton.jit
def index(positions, WIDE: tl.constexpr):
    """Positions as the type in which they may be multiplied by a stride: 64 bits where 32 could overflow."""
    return positions.to(tl.int64) if WIDE else positions


@triton.jit
def load_tile(pointers, rows, row_end, columns, column_end, BOUND_ROWS: tl.constexpr, BOUND_COLUMNS: tl.constexpr):
    """The elements at `pointers`, 0 beyond row_end or column_end where that is asked for. rows and columns broadcast to
    the shape of pointers; without a bound there is no predicate, so that loads are as wide as they can be."""
    if BOUND_ROWS and BOUND_COLUMNS:
        x = tl.load(pointers, mask=(rows < row_end) & (columns < column_end), other=0.0)
    elif BOUND_ROWS:
        x = tl.load(pointers, mask=rows < row_end, other=0.0)
    elif BOUND_COLUMNS:
        x = tl.load(pointers, mask=columns < column_end, other=0.0)
    else:
        x = tl.load(pointers)
    return x


@triton.jit
def product_of_rows(
    left, right, features, CHUNK: tl.constexpr, EXACT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr
):
    """left right^T of two Rows, all of which exist, CHUNK features at a time. EXACT: it divides their number."""
    sums = tl.zeros((left.first.shape[0], right.first.shape[0]), tl.float32)
    for start in tl.range(0, features, CHUNK):
        at = start + tl.arange(0, CHUNK)[None, :]
        column = index(at, WIDE)
        a = load_tile(left.first + column * left.column, at, 0, at, features, False, not EXACT)
        b = load_tile(right.first + column * right.column, at, 0, at, features, False, not EXACT)
        sums = product(a, tl.trans(b), sums, PRECISION)
    return sums


@triton.jit
def store_tile(pointers, x, rows, row_end, columns, column_end):
    """Stores x, in fp32, in the type of the pointers, within the bounds."""
    tl.store(pointers, narrow(x, pointers.dtype.element_ty), mask=(rows < row_end) & (columns < column_end))


@triton.jit
def take(program, tiles, heads, section):
    """(tile, head) of a program. Neighbours take the same tile of neighbouring heads, so that the heads of a section,
    chosen to fit the cache together, go through their keys and values at the same time; sections follow each other."""
    first = program // (tiles * section) * section
    width = tl.minimum(section, heads - first)
    within = program - first * tiles
    return within // width, first + within % width
