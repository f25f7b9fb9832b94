"""Dropout by position: the same random words, and so the same mask, as csrc/include/bigmodel/philox.h defines.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) gives four words per counter, one
for each of four neighbouring columns. `dropout_factor` takes positions of any shape and computes all four words for
each; `dropout_tile` takes a tile of neighbouring columns and computes each word once.
"""

import triton
import triton.language as tl


def dropout_constants(dropout_p: float) -> tuple[int, float]:
    """(threshold, scale) as the kernels take them: the threshold's 32 bits as a signed number, so that the argument has
    one type for every probability; the factor of what is kept."""
    threshold = int(dropout_p * 2**32)
    return (threshold - 2**32 if threshold >= 2**31 else threshold), 1 / (1 - dropout_p)


@triton.jit
def load_seed(seed):
    """The low and high words of the int64 that `seed` points to: read in the kernel, so that no host waits for it."""
    word = tl.load(seed)
    return word.to(tl.uint32), (word >> 32).to(tl.uint32)


@triton.jit
def _words(seed_lo, seed_hi, batch, head, row, column_group):
    c0 = column_group.to(tl.uint32)
    c1 = row.to(tl.uint32)
    c2 = tl.cast(head, tl.uint32)
    c3 = tl.cast(batch, tl.uint32)
    return tl.philox_impl(c0, c1, c2, c3, seed_lo, seed_hi)


@triton.jit
def dropout_factor(seed_lo, seed_hi, batch, head, row, column, threshold, scale):
    """What dropout multiplies the elements at these positions by: `scale` where kept, else 0, in fp32.

    seed_lo, seed_hi: of load_seed. batch, head: integer scalars, or tensors that broadcast. row, column: integer
    tensors that broadcast against each other; the result has their common shape. threshold, scale: of
    dropout_constants.
    """
    w0, w1, w2, w3 = _words(seed_lo, seed_hi, batch, head, row, column // 4)
    even = tl.where(column % 4 < 2, w0, w2)
    odd = tl.where(column % 4 < 2, w1, w3)
    word = tl.where(column % 2 == 0, even, odd)
    return tl.where(word >= tl.cast(threshold, tl.uint32, bitcast=True), scale, 0.0)


@triton.jit
def dropout_tile(
    seed_lo, seed_hi, batch, head, row, first_column, threshold, scale, COLUMNS: tl.constexpr, TRANSPOSED: tl.constexpr
):
    """dropout_factor of a tile of COLUMNS neighbouring columns, for a quarter of the random numbers.

    row: an integer tensor [rows, 1], and the result is [rows, COLUMNS]; or, TRANSPOSED, [1, rows] and [COLUMNS, rows].
    first_column: an integer scalar, a multiple of 4. batch, head: scalars, or tensors that broadcast against row.
    """
    limit = tl.cast(threshold, tl.uint32, bitcast=True)
    group = first_column // 4 + tl.arange(0, COLUMNS // 4)
    group = group[:, None] if TRANSPOSED else group[None, :]
    w0, w1, w2, w3 = _words(seed_lo, seed_hi, batch, head, row, group)
    # Word 2 b + c of a group belongs to column 2 b + c: join puts b, then c, behind the group.
    keep = tl.join(tl.join(w0 >= limit, w2 >= limit), tl.join(w1 >= limit, w3 >= limit))
    if TRANSPOSED:
        keep = tl.reshape(tl.permute(keep, 0, 2, 3, 1), (COLUMNS, keep.shape[1]))
    else:
        keep = tl.reshape(keep, (keep.shape[0], COLUMNS))
    return tl.where(keep, scale, 0.0)
