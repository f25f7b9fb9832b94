"""A record as tables: for the terminal, and as Markdown for documents."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bigmodel_kernels.machine import format_bytes

from .machine import Ceiling
from .record import Record
from .run import Result, Row

# Wide enough for every column; used where the output is not a terminal (a file, a pipe, a CI log).
PLAIN_WIDTH = 200
# Differences below this are noise on a shared machine, and are coloured as a tie.
TIE = 0.03

LEGEND = (
    "ms: median ± half the interquartile range. % peak: of the peak named above (c; bf16 rows: of bf16 dot products, "
    "where the machine has them), or of the memory's bandwidth (m) where that is the limit. error: largest deviation "
    "from float64 over the largest value, output and gradients. memory: most MiB held during a call beyond its inputs, "
    "outputs and gradients included."
)
# What a terminal that is narrower than the whole table goes without, first what it misses least.
DISPENSABLE = ("GB/s", "MiB torch", "MiB ours", "GFLOP/s", "error torch", "error ours", "% peak")
COLUMNS = (
    "op", "shape", "dtype", "pass", "ours ms", "torch ms", "speed-up", "GFLOP/s", "GB/s", "% peak",
    "error ours", "error torch", "MiB ours", "MiB torch",
)  # fmt: skip
OTHER_COLUMNS = ("op", "shape", "dtype", "pass", "contender", "ms", "speed-up of ours", "error", "MiB")


@dataclass(frozen=True)
class Line:
    """One row of the table as text, one entry per column; `speed_up` for its colour; failures as footnotes."""

    cells: tuple[str, ...]
    speed_up: float | None
    failures: tuple[str, ...]


def line_of(row: Row, ceiling: Ceiling | None) -> Line:
    """Renders a row. Rates and percentages are ours; no percentage without a ceiling."""
    ours, peer = row.results["ours"], row.results.get("torch", Result())
    ratio = speed_up(row)
    cells = [row.op, row.shape, row.dtype, row.pass_name, milliseconds(ours), milliseconds(peer)]
    cells.append("" if ratio is None else f"{ratio:.2f}x")
    if ours.timing:
        seconds = ours.timing.median_s
        share = "{:.0f} {}".format(*percent_of_peak(row, ceiling)) if ceiling else ""
        cells += [_rate(row.flops / seconds), _rate(row.bytes / seconds), share]
    else:
        cells += ["", "", ""]
    cells += [error_text(ours), error_text(peer), _mebibytes(ours), _mebibytes(peer)]
    failures = tuple(f"{name}: {row.results[name].failure}" for name in _in_columns(row) if row.results[name].failure)
    return Line(tuple(cells), ratio, failures)


def speed_up(row: Row, name: str = "torch") -> float | None:
    """How many times faster than that contender's our median is; None where one of them failed."""
    ours, peer = row.results["ours"], row.results.get(name, Result())
    return peer.timing.median_s / ours.timing.median_s if ours.timing and peer.timing else None


def percent_of_peak(row: Row, ceiling: Ceiling, name: str = "ours") -> tuple[float, str]:
    """Least possible time over ours (or another's) in percent, and what bounds it: "c" computing, "m" memory."""
    compute_s, memory_s = row.flops / ceiling.flops_per_s_in(row.dtype), row.bytes / ceiling.bytes_per_s
    least_s, limit = max((compute_s, "c"), (memory_s, "m"))
    return 100 * least_s / row.results[name].timing.median_s, limit


def heading(record: Record) -> list[str]:
    """What the rows were measured on, as lines of text."""
    machine, versions = record.machine, record.versions
    ceilings = "; ".join(
        f"{ceiling.threads} thread{'s' if ceiling.threads > 1 else ''}: {ceiling.flops_per_s / 1e9:.0f} GFLOP/s, "
        f"{ceiling.bytes_per_s / 1e9:.1f} GB/s{_other_ceilings(ceiling)}"
        for ceiling in record.ceilings
    )
    peaks = f"measured ceilings (fp32 multiply-add, memory read): {ceilings}"
    if record.device:
        peaks = f"{record.device}; {_data_sheet(record.ceiling)}"
    memory = f", {format_bytes(machine.memory_bytes)} memory" if machine.memory_bytes else ""
    return [
        f"{machine.processor}, {machine.usable_cores} cores, {machine.describe_caches()}{memory}",
        peaks,
        f"CPU target {record.cpu_target}, {record.threads} threads, bigmodel_kernels {versions['bigmodel_kernels']}, "
        f"torch {versions['torch']}, Python {versions['python']}, {machine.system}, "
        f"commit {record.commit or 'unknown'}, {record.created}",
    ]


def _other_ceilings(ceiling: Ceiling) -> str:
    """What is known beside the two that every machine has."""
    known = [
        (ceiling.bf16_dot_flops_per_s, "bf16 dot", "GFLOP/s"),
        (ceiling.int8_dot_ops_per_s, "int8 dot", "GOP/s"),
        (ceiling.l2_bytes_per_s, "L2 read", "GB/s"),
    ]
    return "".join(f", {name} {rate / 1e9:.0f} {unit}" for rate, name, unit in known if rate)


def _data_sheet(ceiling: Ceiling | None) -> str:
    if ceiling is None:
        return "its peaks are not listed, so there are no percentages"
    half, fp32, memory = (
        value / 1e12 for value in (ceiling.half_flops_per_s, ceiling.flops_per_s, ceiling.bytes_per_s)
    )
    return f"its data sheet's peaks: {half:g} TFLOP/s in 16 bits, {fp32:g} in fp32, {memory:g} TB/s"


def other_contenders(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """What the main table has no column for: (op, shape, dtype, pass, contender, ms, how many times as fast ours is,
    error, MiB) of every contender but ours and "torch"; the reason instead of ms where it failed."""
    lines = []
    for row in rows:
        for name, result in row.results.items():
            if name not in ("ours", "torch"):
                ratio = speed_up(row, name)
                time = f"failed: {result.failure}" if result.failure else milliseconds(result)
                faster = "" if ratio is None else f"{ratio:.2f}x"
                lines.append((*row.key, name, time, faster, error_text(result), _mebibytes(result)))
    return lines


def summary(rows: Iterable[Row]) -> list[str]:
    """Per op and dtype the geometric mean of the speed-ups; then what was slower, and what failed."""
    rows = list(rows)
    lines = []
    for (op, dtype), group in groupby(sorted(rows, key=lambda row: (row.op, row.dtype)), lambda r: (r.op, r.dtype)):
        ratios = [ratio for ratio in map(speed_up, group) if ratio is not None]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            lines.append(f"{op} {dtype}: {mean:.2f}x as fast as torch (geometric mean of {len(ratios)} rows)")
    slower = [row for row in rows if (speed_up(row) or 1) < 1]
    lines.append(f"slower than torch: {len(slower)} of {len(rows)} rows")
    lines += [f"  {' '.join(row.key)}: {speed_up(row):.2f}x" for row in sorted(slower, key=speed_up)]
    failed = [(row, name, result) for row in rows for name, result in row.results.items() if result.failure]
    lines.append(f"failed: {len(failed)}")
    lines += [f"  {' '.join(row.key)}, {name}: {result.failure}" for row, name, result in failed]
    return lines


def print_heading(record: Record, console: Console) -> None:
    """Prints `heading` and the legend."""
    for line in heading(record):
        console.print(line, highlight=False)
    console.print(LEGEND, style="dim", highlight=False)


def print_rows(rows: Sequence[Row], ceiling: Ceiling | None, console: Console) -> None:
    """Prints one table of these rows, whatever failed below it, and one of other contenders, if there are any. A narrow
    console gets fewer columns."""
    shown = list(COLUMNS)
    for name in DISPENSABLE:
        # Measured with room to spare: a measurement never says more than the width that it is given.
        if (
            console.measure(_table(rows, ceiling, shown), options=console.options.update(width=1000)).maximum
            <= console.width
        ):
            break
        shown.remove(name)
    console.print(_table(rows, ceiling, shown))
    if len(shown) < len(COLUMNS):
        left_out = ", ".join(name for name in COLUMNS if name not in shown)
        console.print(f"Not shown in {console.width} columns: {left_out}", style="dim", highlight=False)
    others = other_contenders(rows)
    if others:
        table = Table(header_style="bold")
        for name in OTHER_COLUMNS:
            table.add_column(name, overflow="fold")
        for line in others:
            table.add_row(*map(Text, line))
        console.print(table)


def _table(rows: Sequence[Row], ceiling: Ceiling | None, shown: Sequence[str]) -> Table:
    table = Table(caption_justify="left", header_style="bold")
    for name in shown:
        table.add_column(name, justify="left" if name in COLUMNS[:4] else "right", no_wrap=True)
    notes: list[str] = []
    for previous, row in zip([None, *rows], rows, strict=False):
        if previous and (previous.dtype, previous.op) != (row.dtype, row.op):
            table.add_section()
        line = line_of(row, ceiling)
        cells = dict(zip(COLUMNS, map(Text, line.cells), strict=True))
        cells["speed-up"].stylize(_colour(line.speed_up))
        for name in _in_columns(row):
            if failure := row.results[name].failure:
                notes.append(f"[{len(notes) + 1}] {' '.join(row.key)}, {name}: {failure}")
                cells[f"{name} ms"] = Text(f"failed [{len(notes)}]", style="red")
        table.add_row(*(cells[name] for name in shown))
    table.caption = Text("\n".join(notes), style="red") if notes else None
    return table


def markdown(record: Record) -> str:
    """Heading, legend and all rows, as a Markdown document's section."""
    lines = [*(f"- {line}" for line in heading(record)), f"- {LEGEND}", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * 4 + "---:|" * (len(COLUMNS) - 4)]
    for row in record.rows:
        line = line_of(row, record.ceiling)
        cells = list(line.cells)
        if line.failures:
            cells[COLUMNS.index("torch ms")] += " " + "; ".join(line.failures)
        lines.append(_markdown_row(cells))
    others = other_contenders(record.rows)
    if others:
        lines += ["", _markdown_row(OTHER_COLUMNS), "|" + "---|" * 5 + "---:|" * (len(OTHER_COLUMNS) - 5)]
        lines += [_markdown_row(line) for line in others]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.strip().replace("|", "\\|") for cell in cells) + " |"


def report_console() -> Console:
    """A console that wraps no row where nobody can widen it."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def _in_columns(row: Row) -> list[str]:
    """The contenders that the main table has columns for."""
    return [name for name in ("ours", "torch") if name in row.results]


def milliseconds(result: Result) -> str:
    """A time with its spread, "failed", or nothing."""
    if result.timing is None:
        return "failed" if result.failure else ""
    timing = result.timing
    spread = "   once" if timing.samples == 1 else f"± {50 * timing.spread:3.0f} %"
    return f"{short(1e3 * timing.median_s)} {spread}"


def short(value: float) -> str:
    """Three significant digits, never an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _rate(per_second: float) -> str:
    """In units of 1e9, at most two decimals."""
    giga = per_second / 1e9
    return f"{giga:.0f}" if giga >= 100 else f"{giga:.1f}" if giga >= 1 else f"{giga:.2f}"


def error_text(result: Result) -> str:
    """An error to one digit."""
    return "" if result.error is None else f"{result.error:.0e}"


def _mebibytes(result: Result) -> str:
    return "" if result.peak_extra_bytes is None else f"{result.peak_extra_bytes / (1 << 20):.1f}"


def _colour(ratio: float | None) -> str:
    if ratio is None:
        return ""
    if ratio >= 1 + TIE:
        return "green"
    return "yellow" if ratio >= 1 - TIE else "bold red"
