"""Where a run takes place: on this computer's processor, or on a CUDA device. All that differs between the two is here:
the clock, the memory, the caches that buffers rotate through, and the peaks that a rate is compared with."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

import bigmodel_kernels as bmk
from bigmodel_kernels.machine import format_bytes, this_machine

from .harness import wall_clock_ns
from .machine import Ceiling, measure_ceilings
from .memory import peak_extra_bytes

# By the exact name that CUDA gives a device: dense TFLOP/s in 16 bits on tensor cores with fp32 accumulation, TFLOP/s
# in true fp32, and GB/s of memory, from NVIDIA's data sheets. A device of another name gets no percentages.
PEAKS = {
    "Tesla T4": (65, 8.1, 320),
    "NVIDIA A100-SXM4-80GB": (312, 19.5, 2039),
    "NVIDIA L4": (121, 30, 300),
    "NVIDIA GeForce RTX 4090": (165, 82.6, 1008),
    "NVIDIA GeForce RTX 5090": (209.5, 105, 1792),
    "NVIDIA H100 80GB HBM3": (989, 67, 3350),
    "NVIDIA H200": (989, 67, 4800),
    "NVIDIA B200": (2250, 75, 8000),
}


@dataclass(frozen=True)
class Processor:
    """This computer. backend: which of ours runs, None for the automatic choice; others: those of ours that run beside
    it, each as a contender "ours (name)"."""

    backend: str | None = None
    others: tuple[str, ...] = ()
    name = "cpu"

    @property
    def cache_bytes(self) -> int:
        """Of the last level, which rotated buffers are to fill."""
        return this_machine().last_level_cache_bytes

    def ceilings(self, threads: int, progress: Callable[[str], None]) -> list[Ceiling]:
        """Measured."""
        return measure_ceilings(threads, progress)

    def peak_extra_bytes(self, call: Callable[[], object]) -> int:
        return peak_extra_bytes(call)

    def sample_ns(self, call: Callable[[int], object], first_turn: int, calls: int) -> int:
        """Nanoseconds that so many calls take, one for each turn."""
        return wall_clock_ns(call, first_turn, calls)

    def describe(self) -> str | None:
        """What a record says of it beyond the machine."""
        return None


@dataclass(frozen=True)
class CudaDevice:
    """A CUDA device by torch's name of it, as "cuda" or "cuda:1". Methods as Processor's."""

    name: str
    backend: str
    others: tuple[str, ...] = ()

    @property
    def cache_bytes(self) -> int:
        return self._properties().L2_cache_size

    def ceilings(self, threads: int, progress: Callable[[str], None]) -> list[Ceiling]:
        """From the data sheet; none of a device that is not listed."""
        return data_sheet(torch.cuda.get_device_name(self.name))

    def peak_extra_bytes(self, call: Callable[[], object]) -> int:
        """As torch's caching allocator sees it."""
        torch.cuda.synchronize(self.name)
        torch.cuda.reset_peak_memory_stats(self.name)
        before = torch.cuda.memory_allocated(self.name)
        result = call()
        torch.cuda.synchronize(self.name)
        del result
        return torch.cuda.max_memory_allocated(self.name) - before

    def sample_ns(self, call: Callable[[int], object], first_turn: int, calls: int) -> int:
        """Between two events on the device's stream, so that launches overlap with kernels as they do in a model."""
        with torch.cuda.device(self.name):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for turn in range(first_turn, first_turn + calls):
                call(turn)
            end.record()
            end.synchronize()
        return round(start.elapsed_time(end) * 1e6)

    def describe(self) -> str:
        facts = self._properties()
        return (
            f"{facts.name}, compute capability {facts.major}.{facts.minor}, {facts.multi_processor_count} "
            f"multiprocessors, {format_bytes(facts.L2_cache_size)} L2, {format_bytes(facts.total_memory)} memory, "
            f"CUDA {torch.version.cuda}, backend {self.backend}"
        )

    def _properties(self):
        return torch.cuda.get_device_properties(self.name)


Device = Processor | CudaDevice


def device_named(name: str) -> Device:
    """Args: `name` "cpu", "cuda" or "cuda:<number>". Raises: ValueError if it is none of these, if it is not there, or
    if none of our kernels run on it."""
    if name == "cpu":
        return Processor()
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index.isdecimal() or name == "cuda"):
        raise ValueError(f"[bench] {name!r} is no device that is known; expected cpu, cuda or cuda:<number>")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise ValueError(f"[bench] there is no device {name}: torch {torch.__version__} sees {count} CUDA devices")
    reasons = {each: bmk.info()["backends"][each] for each in ("cuda", "triton")}
    usable = [each for each, why in reasons.items() if not why]
    if not usable:
        why = "; ".join(f"{each}: {', '.join(texts)}" for each, texts in reasons.items())
        raise ValueError(f"[bench] none of our kernels run on {name}: {why}")
    return CudaDevice(name, usable[0], tuple(usable[1:]))


def data_sheet(device_name: str) -> list[Ceiling]:
    """The peaks of a device of exactly this name, or nothing."""
    if device_name not in PEAKS:
        return []
    half, fp32, gigabytes = PEAKS[device_name]
    return [Ceiling(0, fp32 * 1e12, gigabytes * 1e9, half * 1e12)]
