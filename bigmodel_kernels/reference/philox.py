"""Philox4x32-10, the counter-based random numbers behind dropout, in integer tensor arithmetic.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def _high_low(product: Tensor) -> tuple[Tensor, Tensor]:
    # An int64 product of two 32-bit words wraps, but its 64 bits are right; the mask undoes the shift's sign extension.
    return (product >> 32) & _WORD, product & _WORD


def philox4x32_10(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random 32-bit words per counter.

    Args: `counter` four and `key` two int64 tensors of 32-bit words, broadcastable against each other.
    Returns: four int64 tensors of values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _high_low(c0 * _MULTIPLIERS[0])
        high1, low1 = _high_low(c2 * _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + _KEY_STEPS[0]) & _WORD
        k1 = (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def dropout_keep(
    batch: int, heads: int, rows: int, columns: int, dropout_p: float, seed: Tensor, first_batch: int = 0
) -> Tensor:
    """Which elements dropout keeps: boolean [batch, heads, rows, columns], a function of the seed and position alone.

    Args: `dropout_p` the probability of dropping, in [0, 1); `seed` an int64 tensor of one element; `first_batch` the
    index of the first batch.
    """

    def positions(size: int, dims_after: int) -> Tensor:
        return torch.arange(size, dtype=torch.int64, device=seed.device).reshape(-1, *[1] * dims_after)

    counter = (positions((columns + 3) // 4, 0), positions(rows, 1), positions(heads, 2))
    counter = (*counter, first_batch + positions(batch, 3))
    words = torch.stack(philox4x32_10(counter, (seed & _WORD, (seed >> 32) & _WORD)), dim=-1)
    return words.flatten(-2)[..., :columns] >= int(dropout_p * 2**32)


def dropout(x: Tensor, dropout_p: float, seed: Tensor, first_batch: int = 0) -> Tensor:
    """Dropout of x [batch, heads, rows, columns]: kept elements are scaled by 1 / (1 - dropout_p), the rest is zero."""
    keep = dropout_keep(*x.shape, dropout_p, seed.to(x.device), first_batch)
    return torch.where(keep, x * (1 / (1 - dropout_p)), 0)
