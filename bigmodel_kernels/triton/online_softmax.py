"""The softmax of rows that arrive in pieces (Milakov and Gimelshein, "Online normalizer calculation for softmax",
2018), in units of log2."""

import triton
import triton.language as tl

from .scores import LN2, LOG2E

# What a maximum starts from, and what a row that has seen no key keeps. Finite, so that no difference of two is NaN.
LOWEST = tl.constexpr(-3.0e38)
# A row keeps its maximum until a score exceeds it by this much: exponentials of up to 2**8 cost no precision, and the
# accumulator is rescaled far less often.
GROWTH = tl.constexpr(8.0)


@triton.jit
def start_softmax(ROWS: tl.constexpr):
    """(maximum, total) before any score."""
    return tl.full((ROWS,), LOWEST, tl.float32), tl.zeros((ROWS,), tl.float32)


@triton.jit
def update_softmax(scores, unit, maximum, total):
    """Takes in a tile of scores, [rows, keys], each times `unit`.

    Returns (weights relative to the maximum, maximum, total, rescale): what was accumulated before is to be multiplied
    by rescale, [rows], 1 for the rows that kept their maximum.
    """
    highest = tl.max(scores, 1) * unit
    grown = tl.where(highest > maximum + GROWTH, highest, maximum)
    rescale = tl.exp2(maximum - grown)
    weights = tl.exp2(scores * unit - grown[:, None])
    return weights, grown, total * rescale + tl.sum(weights, 1), rescale


@triton.jit
def finish_softmax(maximum, total):
    """(what to multiply the accumulator by, lse in natural units): 0 and -inf for a row that saw no key."""
    empty = total == 0
    lse = (maximum + tl.log2(total)) * LN2
    return tl.where(empty, 0.0, 1.0 / total), tl.where(empty, float("-inf"), lse)


@triton.jit
def add_sink(maximum, total, sink):
    """A sink joins the denominator. Returns (maximum, total, rescale) as update_softmax does."""
    logit = sink * LOG2E
    grown = tl.maximum(maximum, logit)
    rescale = tl.exp2(maximum - grown)
    return grown, total * rescale + tl.exp2(logit - grown), rescale
