"""Who was fastest on a row, among those whose answer is right."""

import torch

from ..case import DTYPES
from ..run import Result, Row
from .families import TORCH, family_of

# An answer may miss the truth by two units in the last place of its dtype, and by what fp32 sums of some thousand terms
# lose, or by twice as much as torch itself, since a module rounds after each of its ops and its gradients after each of
# theirs; more is another answer: a lower precision than was asked for, or a mistake.
UNITS_IN_THE_LAST_PLACE = 2
LOST_IN_SUMS = 1e-5
TIMES_TORCH = 2
AS_SHIPPED = TORCH[0].name  # the family for which nothing is set


def tolerance(dtype: str) -> float:
    """The largest error, relative to the largest true value, that counts as rounding in this dtype."""
    return UNITS_IN_THE_LAST_PLACE * torch.finfo(DTYPES[dtype]).eps + LOST_IN_SUMS


def is_wrong(row: Row, result: Result) -> bool:
    """Whether it answered, but not the question."""
    of_torch = [
        other.error for name, other in row.results.items() if family_of(name) == AS_SHIPPED and other.error is not None
    ]
    allowed = max(tolerance(row.dtype), TIMES_TORCH * min(of_torch, default=0.0))
    return result.error is not None and result.error > allowed


def fastest_peer(row: Row, of_torch: bool = False) -> tuple[str, Result] | None:
    """The quickest right contender that is not ours, with its name; None where there is none. of_torch: among those of
    torch as it is shipped."""
    able = [
        (result.timing.median_s, name)
        for name, result in row.results.items()
        if name != "ours"
        and result.timing
        and not is_wrong(row, result)
        and (not of_torch or family_of(name) == AS_SHIPPED)
    ]
    return (min(able)[1], row.results[min(able)[1]]) if able else None


def times_fastest(row: Row, of_torch: bool = False) -> float | None:
    """How many times faster than the fastest peer ours is; None where either has no time or ours is wrong."""
    ours, peer = row.results.get("ours", Result()), fastest_peer(row, of_torch)
    if ours.timing is None or is_wrong(row, ours) or peer is None:
        return None
    return peer[1].timing.median_s / ours.timing.median_s
