"""Fair timing: contenders take turns in one process, on rotated buffers, for as many rounds as a time budget allows.

Taking turns means that whatever else the machine does (turbo, a neighbour, a daemon) falls on all contenders alike.
Rotating means that each call finds its inputs as cold or as warm as a real model would leave them: a large input is
never still in cache from the call before, and an input too small to matter stays hot for everyone.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# A call that takes some microseconds is timed many at once, so that the clock's own cost and grain disappear.
SHORTEST_SAMPLE_NS = 1_000_000
# The first call loads, packs and wakes things. Only one that takes longer than so many samples tells by itself that one
# call makes a sample.
SAMPLES_OF_A_FIRST_CALL = 100
FEWEST_ROUNDS = 3
MOST_ROUNDS = 200
# A call longer than this many budgets is timed once: its warm-up no longer matters, and more would take minutes.
BUDGETS_OF_ONE_CALL = 3


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median of the samples and the quartiles around it."""

    median_s: float
    q1_s: float
    q3_s: float
    samples: int
    calls_per_sample: int

    @property
    def spread(self) -> float:
        """Interquartile range over the median; 0 when there was only one sample."""
        return (self.q3_s - self.q1_s) / self.median_s


def summarize(samples_s: list[float], calls_per_sample: int) -> Timing:
    """Median and quartiles of at least one sample."""
    if len(samples_s) == 1:
        q1 = q3 = samples_s[0]
    else:
        q1, _, q3 = statistics.quantiles(samples_s, n=4, method="inclusive")
    return Timing(statistics.median(samples_s), q1, q3, len(samples_s), calls_per_sample)


def rotations(input_bytes: int, last_level_cache_bytes: int, most: int = 8) -> int:
    """How many copies of the inputs to take turns with.

    Inputs of up to a sixteenth of the last-level cache are hot in any real model too, and stay so: one copy. Larger
    ones get as many copies as fill that cache twice, at most `most`.
    """
    if input_bytes <= last_level_cache_bytes // 16:
        return 1
    return max(1, min(most, math.ceil(2 * last_level_cache_bytes / input_bytes)))


# (call, first turn, number of calls) -> nanoseconds
Sample = Callable[[Callable[[int], object], int, int], int]


def wall_clock_ns(call: Callable[[int], object], first_turn: int, calls: int) -> int:
    """How long so many calls take, one for each turn."""
    start = time.perf_counter_ns()
    for turn in range(first_turn, first_turn + calls):
        call(turn)
    return time.perf_counter_ns() - start


class _Race:
    """One contender's samples so far."""

    def __init__(self, call: Callable[[int], object], longest_s: float, sample_ns: Sample):
        self.call = call
        self.sample_ns = sample_ns
        self.turn = 0
        self.samples_ns: list[int] = []
        self.calls = 1
        first_ns = self._run(1)  # warm-up
        self.is_slow = first_ns * 1e-9 > longest_s
        if self.is_slow:
            self.samples_ns.append(first_ns)
        elif first_ns < SAMPLES_OF_A_FIRST_CALL * SHORTEST_SAMPLE_NS:
            self.calls = self._calls_of_a_sample()

    def _run(self, calls: int) -> int:
        elapsed = self.sample_ns(self.call, self.turn, calls)
        self.turn += calls
        return elapsed

    def _calls_of_a_sample(self) -> int:
        warm_ns = self._run(1)
        if warm_ns < SHORTEST_SAMPLE_NS:
            warm_ns = min(warm_ns, self._run(1), self._run(1))
        return math.ceil(SHORTEST_SAMPLE_NS / max(warm_ns, 1))

    def sample(self) -> None:
        self.samples_ns.append(self._run(self.calls))

    def timing(self) -> Timing:
        return summarize([ns / self.calls * 1e-9 for ns in self.samples_ns], self.calls)


def measure(
    calls: Mapping[str, Callable[[int], object]], budget_s: float, sample_ns: Sample = wall_clock_ns
) -> dict[str, Timing | Exception]:
    """Times every contender; `calls[name](turn)` runs one call on the inputs of that turn. sample_ns: the clock.

    After one call of each to warm up, goes round until `budget_s` seconds have passed, at least FEWEST_ROUNDS times and
    at most MOST_ROUNDS. A contender whose warm-up call takes longer than BUDGETS_OF_ONE_CALL budgets is not called
    again: that call is its only sample. One that raises is out, and its exception takes the place of its timing.
    """
    results: dict[str, Timing | Exception] = {}
    races: dict[str, _Race] = {}
    for name, call in calls.items():
        try:
            races[name] = _Race(call, BUDGETS_OF_ONE_CALL * budget_s, sample_ns)
        except Exception as error:  # the table shows it
            results[name] = error
    collected = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        _go_round({name: race for name, race in races.items() if not race.is_slow}, budget_s, results)
    finally:
        if collected:
            gc.enable()
    for name, race in races.items():
        if name not in results:
            results[name] = race.timing()
    return {name: results[name] for name in calls}


def _go_round(races: dict[str, _Race], budget_s: float, results: dict[str, Timing | Exception]) -> None:
    """Samples the contenders in turn until the time is up; one that raises goes to `results` and leaves."""
    start = time.perf_counter()
    order = list(races)
    for round_number in range(MOST_ROUNDS):
        if round_number >= FEWEST_ROUNDS and time.perf_counter() - start > budget_s:
            return
        for name in tuple(order):
            try:
                races[name].sample()
            except Exception as error:
                results[name] = error
                order.remove(name)
        order = order[1:] + order[:1]  # nobody always runs in another's wake
