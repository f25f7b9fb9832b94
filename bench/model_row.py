"""One thing that a user does, computed by ours and by what they would have otherwise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .harness import Timing, measure
from .run import Result

OURS = "ours"


@dataclass
class ModelRow:
    """what: the thing; results: by contender, ours first; notes: by contender, what else is worth knowing of a call."""

    what: str
    results: dict[str, Result] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def ratio(self, name: str) -> float | None:
        """How many times as fast as that contender ours is; None where one of them failed, and for ours."""
        ours, other = self.results.get(OURS, Result()), self.results[name]
        if name == OURS or not (ours.timing and other.timing):
            return None
        return other.timing.median_s / ours.timing.median_s


def timed(what: str, calls: Mapping[str, Callable[[int], object]], budget_s: float) -> ModelRow:
    """Times contenders in turn (harness.py)."""
    row = ModelRow(what)
    for name, timing in measure(calls, budget_s).items():
        row.results[name] = Result(timing=timing) if isinstance(timing, Timing) else failed(timing)
    return row


def failed(error: Exception) -> Result:
    """The result of a contender that raised an error."""
    result = Result()
    result.fail(error)
    return result
