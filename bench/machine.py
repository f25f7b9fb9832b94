"""The ceilings that a benchmark divides by, measured on this machine at the start of a run."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bigmodel_kernels import _C
from bigmodel_kernels.machine import this_machine

FMA_SECONDS = 0.3
READ_SECONDS = 0.6


@dataclass(frozen=True)
class Ceiling:
    """What the machine reaches at most with this many threads.

    fp32 multiply-add FLOP/s and bytes/s read from memory; bf16 and int8 dot products, None without such instructions;
    and bytes/s read from L2, None where its size is unknown. Of a CUDA device: no threads, its data sheet's peaks, and
    those in 16 bits on tensor cores.
    """

    threads: int
    flops_per_s: float
    bytes_per_s: float
    half_flops_per_s: float | None = None
    bf16_dot_flops_per_s: float | None = None
    int8_dot_ops_per_s: float | None = None
    l2_bytes_per_s: float | None = None

    def flops_per_s_in(self, dtype: str) -> float:
        """Of the products of a row in this dtype: 16 bits have their own instructions on some machines."""
        if dtype in ("bf16", "fp16") and self.half_flops_per_s:
            return self.half_flops_per_s
        return (dtype == "bf16" and self.bf16_dot_flops_per_s) or self.flops_per_s


def thread_counts(threads: int) -> list[int]:
    """1, 2, 4 ... and `threads` itself."""
    counts = [1]
    while counts[-1] * 2 < threads:
        counts.append(counts[-1] * 2)
    return counts if threads == 1 else [*counts, threads]


def measure_ceilings(threads: int, progress: Callable[[str], None] = lambda text: None) -> list[Ceiling]:
    """Measures with 1, 2, 4 ... `threads` threads, on the widest CPU target that the machine runs.

    The multiply-adds and dot products are independent chains in registers: no library's GEMM stands in for the peak.
    The read is of a buffer of eight last-level caches (256 MiB at least, 1 GiB at most), so it is the memory's
    bandwidth; for L2 each thread reads half of its cache again and again.
    """
    buffer_bytes = min(max(8 * this_machine().last_level_cache_bytes, 256 << 20), 1 << 30)
    l2_bytes = _l2_bytes_per_core()
    active_target, active_threads = _C.cpu_target(), torch.get_num_threads()
    ceilings = []
    _C.set_cpu_target(_C.supported_cpu_targets()[0])
    torch.set_num_threads(threads)
    try:
        for count in thread_counts(threads):
            progress(f"measuring this machine's ceilings, {count} thread{'s' if count > 1 else ''}")
            ceilings.append(
                Ceiling(
                    count,
                    _C.fma_peak_flops(count, FMA_SECONDS),
                    _C.read_bandwidth(count, buffer_bytes, READ_SECONDS),
                    None,
                    _C.bf16_dot_peak_flops(count, FMA_SECONDS),
                    _C.int8_dot_peak_ops(count, FMA_SECONDS),
                    _C.read_bandwidth(count, count * l2_bytes // 2, FMA_SECONDS) if l2_bytes else None,
                )
            )
    finally:
        torch.set_num_threads(active_threads)
        _C.set_cpu_target(active_target)
    return ceilings


def _l2_bytes_per_core() -> int | None:
    """The part of L2 that a core has to itself; None where the system does not tell or it is too small to time."""
    sizes = [cache.bytes // cache.shared_by for cache in this_machine().caches if cache.level == 2]
    return sizes[0] if sizes and sizes[0] >= 128 << 10 else None
