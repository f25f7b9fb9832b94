"""Rounding and products, the same on a GPU and in Triton's interpreter (which keeps bfloat16 as its 16 bits)."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x, in fp32, as dtype: to nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        # The interpreter's own conversion cuts the low half off.
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        result = tl.where(x == x, nearest, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = x.to(dtype)
    return result


@triton.jit
def multiply_add(a, b, sums, PRECISION: tl.constexpr):
    """sums + a b in fp32. PRECISION is what fp32 operands are multiplied in: "ieee" or "tf32"."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        # The interpreter would multiply the 16 bits as integers; fp32 holds bfloat16 exactly.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)
