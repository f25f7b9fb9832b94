"""A run against peers, from the selection of rows to the record."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..case import DTYPES, LONG_NAMES
from ..machine import measure_ceilings
from ..record import Record, load_record, new_record
from ..run import Row
from . import families
from .cases import case_of
from .conductor import run_rows
from .rows import PeerRow, rows

# Seconds of sampling per row, all contenders together.
BUDGET_S = 3.0
SMOKE_BUDGET_S = 0.3


def select(ops: Sequence[str] = (), dtypes: Sequence[str] = (), smoke: bool = False) -> list[PeerRow]:
    """The rows of these ops (none named: all) in these dtypes (none named: all), by our short names or torch's.

    Raises ValueError for a name that is none of these.
    """
    named = [(row, case_of(row).op) for row in rows() if row.smoke or not smoke]
    known = list(dict.fromkeys(op for _, op in named))
    dtypes = [LONG_NAMES.get(dtype, dtype) for dtype in dtypes]
    for name, expected in (*((op, known) for op in ops), *((dtype, list(DTYPES)) for dtype in dtypes)):
        if name not in expected:
            raise ValueError(f"[bench] {name!r} is unknown: expected one of {', '.join(expected)}")
    return [row for row, op in named if op in (ops or known) and row.dtype in (dtypes or DTYPES)]


def run_suite(
    selected: Sequence[PeerRow],
    peers: str,
    smoke: bool,
    threads: int | None = None,
    json: Path | None = None,
    resume: bool = False,
    on_row: Callable[[Row], None] = lambda row: None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Record:
    """Measures the ceilings, then every row with `threads` threads; None: with torch's own number, then with one.

    json: where the record is saved, after every row. resume: what is saved there is kept, and only the rows that it
    lacks are measured. Raises ValueError where it is of another machine, build or torch.
    """
    chosen = families.select(peers)
    most = threads or torch.get_num_threads()
    counts = [most] if threads or smoke or most == 1 else [most, 1]
    before = load_record(json) if resume and json and json.exists() else None
    record = new_record(measure_ceilings(most, on_progress), smoke)
    record.threads = most
    if before:
        _continue(record, before)
    earlier_s, start = record.seconds, time.monotonic()

    def keep(row: Row) -> None:
        record.rows.append(row)
        record.seconds = earlier_s + time.monotonic() - start
        if json:
            record.save(json)
        on_row(row)

    done = {(*row.key, row.threads) for row in record.rows}
    budget_s = SMOKE_BUDGET_S if smoke else BUDGET_S
    run_rows(selected, chosen, counts, budget_s, done, keep, record.peers.update, on_progress)
    if json:
        record.save(json)
    return record


def _continue(record: Record, before: Record) -> None:
    """Takes over the rows of an interrupted or smaller run."""
    mine, theirs = ((each.machine, each.cpu_target, each.versions) for each in (record, before))
    if mine != theirs:
        raise ValueError("[bench] --resume: the record is of another machine, CPU target or version")
    if len(before.ceilings) > len(record.ceilings):
        record.ceilings, record.threads = before.ceilings, before.threads
    record.rows, record.peers, record.seconds = before.rows, before.peers, before.seconds
