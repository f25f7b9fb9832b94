"""What a search found, as a table for a terminal."""

from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from ..tuned_launches import Identity
from .search import Result

_WIDTH = 160  # of a table that is not shown in a terminal


def report_console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def print_results(results: Sequence[Result], identity: Identity, console: Console) -> None:
    table = Table(title=f"Measured on {identity.device}, torch {identity.torch}, Triton {identity.triton}.")
    for column in ("launch", "fastest", "ms", "default", "default ms", "speed-up", "candidates", "refused or wrong"):
        table.add_column(column, overflow="fold")
    for result in results:
        table.add_row(
            str(result.problem),
            "the default" if result.launch == result.default else _fields(result.launch),
            f"{result.milliseconds:.4g}",
            _fields(result.default),
            f"{result.default_milliseconds:.4g}",
            f"{result.default_milliseconds / result.milliseconds:.2f}x",
            str(result.tried),
            ", ".join(f"{reason}: {count}" for reason, count in result.failures.items()) or "none",
        )
    console.print(table, highlight=False, markup=False)


def _fields(launch) -> str:
    return " ".join(
        f"{name.removeprefix('block_').removeprefix('num_')} {value}" for name, value in asdict(launch).items()
    )
