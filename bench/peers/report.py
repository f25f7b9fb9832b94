"""A run against peers as tables: ours beside the fastest of them, then every contender's time."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..record import Record
from ..report import TIE, error_text, heading, milliseconds, percent_of_peak, short
from ..run import Result, Row
from .goals import elsewhere, goal_of
from .verdict import fastest_peer, is_wrong, times_fastest

COLUMNS = (
    "op", "shape", "dtype", "pass", "threads", "ours ms", "fastest peer", "its ms", "times as fast", "% ceiling",
    "its %", "goal", "needs %", "reached", "error ours", "its error", "elsewhere",
)  # fmt: skip
LEGEND = (
    "ms: median ± half the interquartile range. times as fast: the fastest peer's median over ours. % ceiling: least "
    "possible time over the measured one, of multiply-adds (c) or of reading memory (m), whichever bounds; above 100 "
    "where the data lay in a cache. goal: times as fast as the fastest peer, or as torch as it is shipped, and percent "
    "of the ceiling; needs %: of the ceiling, to be as many times as fast: that goal times the peer's percent; "
    "reached: of the two goals, in this order. error: largest deviation from float64 over the largest value, outputs "
    "and gradients. elsewhere: the fastest engine's percent of the ceiling on an AMD Zen 5 with AVX-512 and "
    "AVX512-BF16 (bf16 rows: of its bf16 dot product). A contender whose error is beyond rounding, and beyond twice "
    "torch's own, is marked wrong and is never the fastest."
)


@dataclass(frozen=True)
class Line:
    """A row's cells and, for its colour, how many times as fast ours is."""

    cells: tuple[str, ...]
    times: float | None


def line_of(row: Row, record: Record) -> Line:
    """One row of the table."""
    ours, peer = row.results.get("ours", Result()), fastest_peer(row)
    ceiling, times, there = record.ceiling_of(row), times_fastest(row), elsewhere(row)
    cells = [row.op, row.shape, row.dtype, row.pass_name, str(row.threads), milliseconds(ours)]
    if is_wrong(row, ours):
        cells[-1] += " wrong"
    cells += [peer[0], milliseconds(peer[1])] if peer else ["none", ""]
    cells.append("" if times is None else f"{times:.2f}x")
    for name in ("ours", peer[0] if peer else ""):
        timed = name in row.results and row.results[name].timing
        cells.append("{:.0f} {}".format(*percent_of_peak(row, ceiling, name)) if timed else "")
    needs = needed_percent(row, record)
    cells += [goal_of(row).text(row.dtype), "" if needs is None else f"{needs:.0f}"]
    cells.append("".join(_mark(half) for half in reached(row, record)))
    cells += [error_text(ours), error_text(peer[1]) if peer else ""]
    cells.append(f"{there.percent} % {there.engine}" if there else "")
    return Line(tuple(cells), times)


def reached(row: Row, record: Record) -> list[bool]:
    """Whether ours is as many times as fast as its goal says and, where it says so, as near to the ceiling."""
    goal = goal_of(row)
    times = times_fastest(row, goal.of_torch)
    if times is None:
        return []
    percent = percent_of_peak(row, record.ceiling_of(row), "ours")[0]
    return [times >= goal.times] + ([percent >= goal.percent[row.dtype]] if row.dtype in goal.percent else [])


def needed_percent(row: Row, record: Record) -> float | None:
    """The percent of the ceiling at which ours would be as many times as fast as its goal says."""
    goal = goal_of(row)
    peer = fastest_peer(row, goal.of_torch)
    return goal.times * percent_of_peak(row, record.ceiling_of(row), peer[0])[0] if peer else None


def _mark(half: bool) -> str:
    return "✓" if half else "✗"


def peer_heading(record: Record) -> list[str]:
    """The machine, the ceilings and what every family ran, as lines of text."""
    families = [f"{name}: {text}" for name, text in record.peers.items()]
    setting = (
        "every family in a process of its own, samples in turn, "
        "MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ raised for all"
    )
    return [*heading(record), setting, "; ".join(families)]


def summary(record: Record) -> list[str]:
    """How often ours is ahead and reaches its goal, where it is behind, and what failed or was wrong."""
    rows = record.rows
    compared = [(times_fastest(row), row) for row in rows]
    behind = sorted(((t, row) for t, row in compared if t is not None and t < 1), key=lambda pair: pair[0])
    known = sum(times is not None for times, _ in compared)
    lines = [f"ahead of every peer: {known - len(behind)} of {known} rows"]
    halves = [half for row in rows if (half := reached(row, record))]
    for index, name in enumerate(("times as fast as its goal says", "as near to the ceiling as its goal says")):
        asked = [half[index] for half in halves if len(half) > index]
        lines.append(f"{name}: {sum(asked)} of {len(asked)} rows")
    needs = [percent for row in rows if (percent := needed_percent(row, record)) is not None]
    beyond = sum(percent > 100 for percent in needs)
    lines.append(f"goals of times as fast that need more than the ceiling: {beyond} of {len(needs)} rows")
    lines += [f"behind: {len(behind)}"]
    lines += [f"  {_name(row)}: {times:.2f}x, {fastest_peer(row)[0]}" for times, row in behind]
    for row in rows:
        for name, result in row.results.items():
            if result.failure:
                lines.append(f"failed: {_name(row)}, {name}: {result.failure}")
            elif is_wrong(row, result):
                lines.append(f"wrong: {_name(row)}, {name}: error {error_text(result)}")
    return lines


def print_rows(record: Record, console: Console) -> None:
    """Prints the table."""
    table = Table(header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in (*COLUMNS[:4], "fastest peer", "elsewhere") else "right")
    previous: Row | None = None
    for row in record.rows:
        if previous and (previous.op, previous.dtype, previous.threads) != (row.op, row.dtype, row.threads):
            table.add_section()
        line = line_of(row, record)
        cells = [Text(cell) for cell in line.cells]
        cells[COLUMNS.index("times as fast")].stylize(_colour(line.times))
        table.add_row(*cells)
        previous = row
    console.print(table)


def markdown(record: Record) -> str:
    """Heading, the table, the summary, and every contender's time, as a document's section."""
    lines = [*(f"- {line}" for line in peer_heading(record)), f"- {LEGEND}", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * 4 + "---:|" * (len(COLUMNS) - 4)]
    lines += ["| " + " | ".join(map(_cell, line_of(row, record).cells)) + " |" for row in record.rows]
    lines += ["", "### Summary", "", *(f"- {line.strip()}" for line in summary(record)), ""]
    lines += ["### Every contender", "", "Milliseconds, quickest first.", ""]
    lines += ["| row | contenders |", "|---|---|"]
    lines += [f"| {_cell(_name(row))} | {_cell(_all_times(row))} |" for row in record.rows]
    return "\n".join(lines) + "\n"


def _all_times(row: Row) -> str:
    timed = sorted((r.timing.median_s, name) for name, r in row.results.items() if r.timing)
    marks = {name: " (wrong)" if is_wrong(row, result) else "" for name, result in row.results.items()}
    texts = [f"{name} {short(1e3 * seconds)}{marks[name]}" for seconds, name in timed]
    return ", ".join(texts + [f"{name} failed" for name, result in row.results.items() if result.failure])


def _name(row: Row) -> str:
    return f"{' '.join(row.key)}, {row.threads} thread{'s' if row.threads != 1 else ''}"


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|")


def _colour(times: float | None) -> str:
    if times is None:
        return ""
    return "green" if times >= 1 + TIE else "yellow" if times >= 1 - TIE else "bold red"
