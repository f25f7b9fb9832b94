"""The whole suite: which ops there are, and a run over a selection of their cases."""

import time
from collections.abc import Callable, Sequence

import torch

from . import (
    bench_add_norm,
    bench_attention,
    bench_attention_decode,
    bench_attention_varlen,
    bench_attention_weights,
    bench_feed_forward,
    bench_linear,
    bench_linear_cross_entropy,
    bench_nn,
    bench_rotary,
)
from .case import DTYPES, LONG_NAMES, Case
from .device import Device, Processor
from .record import Record, new_record
from .run import Row, run_case

OPS = {
    "attention": bench_attention,
    "attention_weights": bench_attention_weights,
    "attention_varlen": bench_attention_varlen,
    "attention_decode": bench_attention_decode,
    "linear": bench_linear,
    "feed_forward": bench_feed_forward,
    "add_norm": bench_add_norm,
    "rotary": bench_rotary,
    "linear_cross_entropy": bench_linear_cross_entropy,
    "nn": bench_nn,
}

# Seconds of sampling per row: a quick run's hundred rows then take about three minutes on two cores.
QUICK_BUDGET_S = 0.5
FULL_BUDGET_S = 3.0


def select(ops: Sequence[str] = (), dtypes: Sequence[str] = (), quick: bool = False, device: str = "cpu") -> list[Case]:
    """The cases of these ops (none named: all) in these dtypes (none named: all), by our short names or torch's. On a
    CUDA device they are larger, and there are more contenders.

    Raises ValueError for a name that is none of these.
    """
    dtypes = [LONG_NAMES.get(dtype, dtype) for dtype in dtypes]
    for name, known in (*((op, OPS) for op in ops), *((dtype, DTYPES) for dtype in dtypes)):
        if name not in known:
            raise ValueError(f"[bench] {name!r} is unknown: expected one of {', '.join(known)}")
    kind = device.partition(":")[0]
    return [case for op in ops or OPS for case in OPS[op].cases(quick, dtypes or list(DTYPES), kind)]


def run_suite(
    cases: Sequence[Case],
    quick: bool,
    threads: int | None = None,
    device: Device | None = None,
    on_start: Callable[[Record], None] = lambda record: None,
    on_case: Callable[[Case], None] = lambda case: None,
    on_row: Callable[[Row], None] = lambda row: None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Record:
    """Measures the machine's ceilings, then runs every case.

    threads: for kernels and torch alike; None: torch's own number. device: the processor by default. The callbacks see
    the record as soon as the ceilings are in it, each case before and each row after it is run, and what else takes a
    moment.
    """
    device = device or Processor()
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        ceilings = device.ceilings(torch.get_num_threads(), on_progress)
        record = new_record(ceilings, quick, device.describe())
        on_start(record)
        start = time.monotonic()
        for case in cases:
            on_case(case)
            record.rows.append(run_case(case, QUICK_BUDGET_S if quick else FULL_BUDGET_S, device=device))
            on_row(record.rows[-1])
        record.seconds = time.monotonic() - start
    finally:
        torch.set_num_threads(before)
    return record
