"""The audit as a table for a terminal, as Markdown and as JSON."""

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .architectures import BY_CAPABILITY
from .rows import Row

_COLUMNS = (
    "op",
    "kernel",
    "dtype",
    "warps",
    "registers",
    "spills",
    "shared KiB",
    "blocks/SM",
    "tensor-core instructions",
    "mma share",
    "global loads",
    "exp",
    "limiter: clocks of an iteration",
)
_LEGEND = (
    "Tensor-core instructions: found in the code / needed by one iteration of the inner loop (the code may hold the",
    "loop more than once). mma share: of the instructions of the inner loop over whole tiles, those that multiply",
    "matrices (in fp32: multiply-adds); one of HGMMA or UTCHMMA does the work of many of HMMA. Global loads:",
    "instructions by width in bits. exp: instructions in the code; of attention also how many an iteration runs for",
    "each of its scores. Limiter: the unit with the most clocks for one iteration of one block, at the peak rates of",
    "the device in the heading; of kernels without products, for one pass through their code. `issue` is the",
    "instructions themselves, four a clock. What a layer's epilogue exponentiates is spread over its iterations.",
    "Of the CUDA kernels the inner loop holds the boundary's code too, which whole tiles jump over; on sm_90 and",
    "sm_100 they multiply by HMMA, which does not reach the peak rate of HGMMA or UTCHMMA that the clocks assume.",
    "`bigmodel audit --json` writes each division out.",
)
_WIDTH = 240  # of a table that is not shown in a terminal
_BACKENDS = {"triton": "Triton", "cuda": "CUDA C++"}
_PREDICTED = "Predicted from machine code, not measured"


def report_console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def print_rows(rows: Sequence[Row], console: Console) -> None:
    for title, of_title in _by_title(rows):
        table = Table(title=f"{title}. {_PREDICTED}.", title_justify="left")
        for column in _COLUMNS:
            table.add_column(column, overflow="fold")
        for row in of_title:
            table.add_row(*_cells(row))
        console.print(table, highlight=False, markup=False)
    console.print(
        f"{len(rows)} kernels, {sum(row.spills > 0 for row in rows)} with spills. {_PREDICTED}.", highlight=False
    )


def markdown(rows: Sequence[Row], command: str) -> str:
    """command: the one that made the rows."""
    lines = [
        f"# Audit of the {' and '.join(dict.fromkeys(_BACKENDS[row.backend] for row in rows))} kernels",
        "",
        f"{_PREDICTED}: no GPU has run these kernels for this page. Every figure is read from the machine code",
        "that the compiler made for the default launches, or follows from it by arithmetic. The command:",
        "",
        f"    {command}",
        "",
        *_LEGEND,
    ]
    for title, of_title in _by_title(rows):
        lines += ["", f"## {title}, predicted", ""]
        lines += ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in of_title]
    return "\n".join(lines) + "\n"


def save(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([row.as_dict() for row in rows], indent=1) + "\n")


def _by_title(rows: Sequence[Row]) -> Iterable[tuple[str, Iterable[Row]]]:
    return groupby(rows, key=lambda row: f"{row.arch} ({_device(row.arch)}), {_BACKENDS[row.backend]}")


def _device(arch: str) -> str:
    return next(each.device for each in BY_CAPABILITY.values() if each.name == arch)


def _cells(row: Row) -> list[str]:
    clocks = ", ".join(f"{unit} {clocks:.0f}" for unit, clocks in row.clocks.items())
    mma = ", ".join(f"{name} {count}" for name, count in row.mma.items())
    return [
        row.op,
        row.kernel,
        row.dtype,
        str(row.warps),
        str(row.registers),
        str(row.spills),
        f"{(row.static_shared + row.dynamic_shared) / 1024:.1f}",
        f"{row.blocks_per_multiprocessor} ({row.blocks_limited_by})",
        f"{mma} / {row.mma_expected:g}" if mma else "none",
        "" if row.mma_share is None else f"{100 * row.mma_share:.1f} %",
        ", ".join(f"{width}: {count}" for width, count in row.global_loads.items()),
        str(row.exps) + ("" if row.exps_per_score is None else f" ({row.exps_per_score:.2f} a score)"),
        f"{row.limiter}: {clocks}",
    ]
