"""Whole models, and the two ops that make them cheap, beside what a user would have otherwise: the README's table.

    bigmodel bench --models all --markdown FILE

The ops' rows are cases of the suite, without their error against float64, which `bigmodel bench` has.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from . import bench_attention_decode, bench_linear_cross_entropy, causal_lm, minilm
from .case import Case
from .device import Processor
from .machine import Ceiling
from .memory import peak_extra_bytes
from .model_row import OURS, ModelRow, failed, timed
from .record import Record, new_record
from .run import rotating_calls

DECODE = [
    (dtype, shape)
    for dtype, int8 in (("fp32", False), ("bf16", False), ("bf16", True))
    for shape in bench_attention_decode.shapes(dtype, int8)
]
VOCABULARIES = (32000, 128000)


@dataclass(frozen=True)
class Part:
    """rows(seconds of sampling per row, on_progress, the machine's ceiling) yields `count` rows."""

    rows: Callable[[float, Callable[[str], None], Ceiling], Iterator[ModelRow]]
    budget_s: float
    count: int


@dataclass
class ModelsRecord:
    """record: the machine, and the versions; it has no rows of its own."""

    record: Record
    rows: list[ModelRow] = field(default_factory=list)


def _decode_rows(budget_s: float, on_progress: Callable[[str], None], ceiling: Ceiling) -> Iterator[ModelRow]:
    for dtype, shape in DECODE:
        cache = "int8" if shape.int8 else dtype
        what = f"attention_decode, {cache} cache, batch {shape.batch} of {shape.length} keys, 32/8 heads of 128"
        on_progress(what)
        row = timed(what, _calls(bench_attention_decode.case(shape, dtype)), budget_s)
        for name, result in row.results.items():
            if result.timing:
                rate = shape.cache_bytes(dtype) / result.timing.median_s
                share = 100 * rate / ceiling.bytes_per_s
                row.notes[name] = f"{rate / 1e9:.1f} GB/s of cache, {share:.0f} % of the memory's"
        yield row


def _cross_entropy_rows(budget_s: float, on_progress: Callable[[str], None], ceiling: Ceiling) -> Iterator[ModelRow]:
    for vocabulary in VOCABULARIES:
        for backward in (False, True):
            shape = bench_linear_cross_entropy.Shape(1024, 512, vocabulary)
            passes = "forward and backward" if backward else "forward"
            what = f"linear_cross_entropy, {shape.rows} rows of {shape.width}, vocabulary {vocabulary}, fp32, {passes}"
            on_progress(what)
            calls = _calls(bench_linear_cross_entropy.case(shape, "fp32", backward))
            notes = {
                name: f"{peak_extra_bytes(lambda call=call: call(0)) / 2**20:.0f} MiB" for name, call in calls.items()
            }
            row = timed(what, calls, budget_s)
            row.notes = {name: note for name, note in notes.items() if row.results[name].timing}
            yield row


def _calls(case: Case) -> dict[str, Callable[[int], object]]:
    return rotating_calls(case, torch.Generator().manual_seed(0))


PARTS = {
    "minilm": Part(lambda budget_s, on_progress, ceiling: minilm.rows(budget_s, on_progress), 40.0, 1),
    "training": Part(lambda budget_s, on_progress, ceiling: causal_lm.training_rows(budget_s, on_progress), 15.0, 1),
    "generation": Part(lambda budget_s, on_progress, ceiling: causal_lm.generation_rows(budget_s, on_progress), 8.0, 1),
    "decode": Part(_decode_rows, 1.0, len(DECODE)),
    "cross_entropy": Part(_cross_entropy_rows, 6.0, 2 * len(VOCABULARIES)),
}


def selected(names: str) -> list[str]:
    """The parts that "all", or names with commas between, mean. Raises ValueError for a name that is none."""
    wanted = list(PARTS) if names == "all" else names.split(",")
    for name in wanted:
        if name not in PARTS:
            raise ValueError(
                f"[bench] --models {name}: expected all, or names of {', '.join(PARTS)} with commas between"
            )
    return wanted


def _rows(name: str, on_progress: Callable[[str], None], ceiling: Ceiling) -> Iterator[ModelRow]:
    """A part's rows; where what it needs is not installed, one that says so."""
    try:
        yield from PARTS[name].rows(PARTS[name].budget_s, on_progress, ceiling)
    except ImportError as error:
        yield ModelRow(name, {OURS: failed(error)})


def run(
    names: Sequence[str],
    threads: int | None = None,
    on_row: Callable[[ModelRow], None] = lambda row: None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> ModelsRecord:
    """Measures the machine's ceilings, then runs the parts. threads: for all contenders; None: torch's own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        ceilings = Processor().ceilings(torch.get_num_threads(), on_progress)
        done = ModelsRecord(new_record(ceilings, quick=False))
        for name in names:
            for row in _rows(name, on_progress, ceilings[-1]):
                done.rows.append(row)
                on_row(row)
    finally:
        torch.set_num_threads(before)
    return done
