"""A run against peers as a roofline: every row's rate over its arithmetic intensity, below the measured ceilings."""

from pathlib import Path

from ..machine import Ceiling
from ..record import Record
from ..run import Row
from .verdict import fastest_peer

_OURS, _PEER = "#1d4e89", "#c8553d"
_MARKERS = {"fp32": "o", "bf16": "s", "fp16": "^"}


def draw(record: Record, path: Path) -> None:
    """Writes a PNG: one panel per number of threads; a line joins ours to the fastest peer of the same row."""
    from matplotlib.figure import Figure

    counts = sorted({row.threads for row in record.rows}, reverse=True)
    figure = Figure(figsize=(11, 6.5 * len(counts)), layout="constrained")
    for axes, threads in zip(figure.subplots(len(counts), 1, squeeze=False)[:, 0], counts, strict=True):
        rows = [row for row in record.rows if row.threads == threads]
        _draw_rows(axes, rows)
        _draw_ceilings(axes, record.ceiling_of(rows[0]), rows)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("useful floating-point operations per byte that must be moved")
        axes.set_ylabel("GFLOP/s")
        axes.set_title(f"{threads} thread{'s' if threads > 1 else ''}", loc="left", fontweight="bold")
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", frameon=False, fontsize=8)
    commit = f", commit {record.commit}" if record.commit else ""
    figure.suptitle(f"{record.machine.processor}, {record.cpu_target}, torch {record.versions['torch']}{commit}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw_rows(axes, rows: list[Row]) -> None:
    labelled: set[tuple[str, str]] = set()
    for row in rows:
        intensity, rates = row.flops / row.bytes, {}
        peer = fastest_peer(row)
        for label, result, colour in (
            ("ours", row.results.get("ours"), _OURS),
            ("fastest peer", peer and peer[1], _PEER),
        ):
            if result is None or result.timing is None:
                continue
            rates[label] = row.flops / result.timing.median_s / 1e9
            key = (label, row.dtype)
            text = None if key in labelled else f"{label}, {row.dtype}"
            labelled.add(key)
            axes.plot(intensity, rates[label], _MARKERS[row.dtype], color=colour, markersize=5, alpha=0.8, label=text)
        if len(rates) == 2:
            axes.plot([intensity, intensity], list(rates.values()), color="0.6", linewidth=0.8, zorder=0)


def _draw_ceilings(axes, ceiling: Ceiling, rows: list[Row]) -> None:
    intensities = [row.flops / row.bytes for row in rows]
    left, right = min(intensities) / 1.5, max(intensities) * 1.5
    for rate, name, style in (
        (ceiling.flops_per_s, "fp32 multiply-add", "-"),
        (ceiling.bf16_dot_flops_per_s, "bf16 dot", "--"),
    ):
        if rate:
            axes.plot([left, right], [rate / 1e9] * 2, style, color="0.2", label=f"{name} {rate / 1e9:.0f} GFLOP/s")
    top = max(ceiling.flops_per_s, ceiling.bf16_dot_flops_per_s or 0)
    for rate, name, style in ((ceiling.bytes_per_s, "memory", ":"), (ceiling.l2_bytes_per_s, "L2", "-.")):
        if rate:
            end = min(right, max(left, top / rate))
            line = [left * rate / 1e9, end * rate / 1e9]
            axes.plot([left, end], line, style, color="0.2", label=f"{name} read {rate / 1e9:.0f} GB/s")
