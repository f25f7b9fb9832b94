"""Two records side by side: a table, and a picture."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .record import Record
from .report import TIE, heading, percent_of_peak
from .run import Result, Row

# An op whose cost is bytes is drawn in GB/s; the others in GFLOP/s.
_DRAWN_IN_BYTES = {"add_norm"}


def pairs(first: Record, second: Record) -> list[tuple[Row | None, Row | None]]:
    """The rows of both by what they measure, in the first's order; None where one record lacks a row."""
    others = {row.key: row for row in second.rows}
    both: list[tuple[Row | None, Row | None]] = [(row, others.pop(row.key, None)) for row in first.rows]
    return both + [(None, row) for row in others.values()]


def print_comparison(first: Record, second: Record, console: Console) -> None:
    """Prints both machines, and for every row ours and torch's times in A and in B, and A's time over B's."""
    for name, record in (("A", first), ("B", second)):
        for number, line in enumerate(heading(record)):
            console.print(f"{name if number == 0 else ' '}  {line}", highlight=False, markup=False)
    table = Table(header_style="bold")
    for name in ("op", "shape", "dtype", "pass"):
        table.add_column(name, no_wrap=True)
    for name in ("ours A ms", "ours B ms", "B is faster", "torch A ms", "torch B ms", "B is faster", "% peak A", "B"):
        table.add_column(name, justify="right", no_wrap=True)
    previous: Row | None = None
    for a, b in pairs(first, second):
        row = a or b
        if previous and (previous.op, previous.dtype) != (row.op, row.dtype):
            table.add_section()
        cells: list[str | Text] = [*row.key]
        for name in ("ours", "torch"):
            cells += [_milliseconds(a, name), _milliseconds(b, name), _ratio(a, b, name)]
        table.add_row(*cells, _percent(a, first), _percent(b, second))
        previous = row
    console.print(table)
    lacking = sum(a is None or b is None for a, b in pairs(first, second))
    if lacking:
        console.print(f"{lacking} rows are in one of the two only", highlight=False)


def _result(row: Row | None, name: str) -> Result:
    return row.results.get(name, Result()) if row else Result()


def _milliseconds(row: Row | None, name: str) -> Text:
    result = _result(row, name)
    if result.failure:
        return Text("failed", style="red")
    return Text(f"{1e3 * result.timing.median_s:.3g}" if result.timing else "")


def _ratio(a: Row | None, b: Row | None, name: str) -> Text:
    first, second = _result(a, name).timing, _result(b, name).timing
    if not first or not second:
        return Text("")
    ratio = first.median_s / second.median_s
    style = "green" if ratio > 1 + TIE else "yellow" if ratio > 1 - TIE else "bold red"
    return Text(f"{ratio:.2f}x", style=style)


def _percent(row: Row | None, record: Record) -> str:
    if row is None or record.ceiling is None or not row.results["ours"].timing:
        return ""
    percent, limit = percent_of_peak(row, record.ceiling)
    return f"{percent:.0f} {limit}"


def draw(first: Record, second: Record, path: Path) -> None:
    """Writes a PNG: one panel per op, and per row one bar for each of ours and torch's in A and in B."""
    from matplotlib.figure import Figure

    rows = [(a, b) for a, b in pairs(first, second) if a and b]
    if not rows:
        raise ValueError("[compare] the two records share no row: nothing to draw")
    ops = list(dict.fromkeys(a.op for a, _ in rows))
    counts = [sum(a.op == op for a, _ in rows) for op in ops]
    figure = Figure(figsize=(11, 1.5 + 0.9 * len(ops) + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(len(ops), 1, squeeze=False, height_ratios=[count + 2 for count in counts])[:, 0]
    series = [
        ("A, ours", 0, "ours", "#1d4e89"),
        ("A, torch", 0, "torch", "#9dbcdf"),
        ("B, ours", 1, "ours", "#c8553d"),
        ("B, torch", 1, "torch", "#f2b8a8"),
    ]
    for op, axes in zip(ops, panels, strict=True):
        group = [pair for pair in rows if pair[0].op == op]
        in_bytes = op in _DRAWN_IN_BYTES
        for index, (label, which, name, colour) in enumerate(series):
            rates = [_rate(pair[which], name, in_bytes) for pair in group]
            positions = [place + (index - 1.5) * 0.2 for place in range(len(group))]
            axes.barh(positions, rates, height=0.2, color=colour, label=label)
            for position, pair in zip(positions, group, strict=True):
                if _result(pair[which], name).failure:
                    axes.text(0, position, " failed", va="center", fontsize=6, color=colour)
        axes.set_yticks(range(len(group)), [f"{a.shape}  {a.dtype}  {a.pass_name}" for a, _ in group], fontsize=8)
        axes.set_ylim(len(group) - 0.4, -0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(f"{'GB/s' if in_bytes else 'GFLOP/s'}, longer is faster", fontsize=8)
        axes.set_title(op, loc="left", fontweight="bold")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    titles = [f"{name}: {_title(record)}" for name, record in (("A", first), ("B", second))]
    figure.suptitle("\n".join(titles), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _title(record: Record) -> str:
    commit = f", commit {record.commit}" if record.commit else ""
    return (
        f"{record.machine.processor}, {record.cpu_target}, {record.threads} threads, "
        f"torch {record.versions['torch']}{commit}"
    )


def _rate(row: Row, name: str, in_bytes: bool) -> float:
    timing = _result(row, name).timing
    return (row.bytes if in_bytes else row.flops) / timing.median_s / 1e9 if timing else 0.0
