"""A run of models.py as a table: for the terminal, and as Markdown for documents."""

import importlib.metadata
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .model_row import OURS, ModelRow
from .models import ModelsRecord
from .report import TIE, heading, milliseconds

COLUMNS = ("what", "contender", "ms", "ours is", "")
OTHERS = ("transformers", "onnxruntime")


def lines(rows: list[ModelRow]) -> Iterator[tuple[tuple[str, ...], float | None]]:
    """The table as text, one tuple per contender, and how many times as fast ours is, for its colour."""
    for row in rows:
        for number, (name, result) in enumerate(row.results.items()):
            ratio = row.ratio(name)
            time = f"failed: {result.failure}" if result.failure else milliseconds(result)
            faster = "" if ratio is None else f"{ratio:.2f}x"
            yield ((row.what if number == 0 else "", name, time, faster, row.notes.get(name, "")), ratio)


def versions() -> str:
    """Of what the contenders are made of, where it is installed."""
    found = []
    for name in OTHERS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def print_run(done: ModelsRecord, console: Console) -> None:
    """Prints the machine and the table."""
    for line in (*heading(done.record), versions()):
        console.print(line, highlight=False, markup=False)
    table = Table(header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in ("ms", "ours is") else "left", overflow="fold")
    for cells, ratio in lines(done.rows):
        if cells[0] and table.row_count:
            table.add_section()
        texts = [Text(cell) for cell in cells]
        if ratio is not None:
            texts[3].stylize("green" if ratio >= 1 + TIE else "yellow" if ratio >= 1 - TIE else "bold red")
        table.add_row(*texts)
    console.print(table)


def markdown(done: ModelsRecord) -> str:
    """The same as a Markdown document's section."""
    text = [*(f"- {line}" for line in (*heading(done.record), versions())), ""]
    text += ["| | | ms | ours is | |", "|---|---|---:|---:|---|"]
    for cells, _ in lines(done.rows):
        shown = [" ".join(cell.replace("|", "\\|").split()) for cell in cells]
        if shown[1] == OURS:
            shown[1] = "**ours**"
        text.append("| " + " | ".join(shown) + " |")
    return "\n".join(text) + "\n"
