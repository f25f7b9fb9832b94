"""What this computer is: processor, cores, caches, memory, operating system. Read from the system, never guessed."""

import functools
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cache:
    """One cache of the first core: its level, what it holds (data, instruction, unified), its size and sharers."""

    level: int
    kind: str
    bytes: int
    shared_by: int


@dataclass(frozen=True)
class Machine:
    """This computer. Sizes in bytes; `None` or empty where the system does not tell."""

    processor: str
    architecture: str
    cores: int
    usable_cores: int
    caches: tuple[Cache, ...]
    memory_bytes: int | None
    system: str

    @property
    def last_level_cache_bytes(self) -> int:
        """Size of the largest cache; 32 MiB is taken where the system does not tell."""
        return max((cache.bytes for cache in self.caches), default=32 << 20)

    def describe_caches(self) -> str:
        """One line: `32 KiB L1d, 512 KiB L2, 32 MiB L3 (shared by 2)`."""
        parts = []
        for cache in self.caches:
            suffix = {"Data": "d", "Instruction": "i"}.get(cache.kind, "")
            shared = f" (shared by {cache.shared_by})" if cache.shared_by > 1 else ""
            parts.append(f"{format_bytes(cache.bytes)} L{cache.level}{suffix}{shared}")
        return ", ".join(parts) or "unknown"


def this_machine() -> Machine:
    """Reads the description of this computer."""
    return Machine(
        processor=_processor(),
        architecture=platform.machine(),
        cores=os.cpu_count() or 1,
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        caches=_caches(),
        memory_bytes=_memory_bytes(),
        system=_system(),
    )


def format_bytes(count: float) -> str:
    """A size for people: `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if count == int(count) or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    return fields


def is_amd() -> bool:
    """Whether the processor is known to be AMD's: some libraries take slower paths there."""
    return _cpuinfo().get("vendor_id") == "AuthenticAMD"


def _processor() -> str:
    """The model's name, with family, model and stepping where the name alone says little (as on virtual machines)."""
    fields = _cpuinfo()
    if not fields and platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields and "model" in fields:
        return (
            f"{name} (family {fields['cpu family']}, model {fields['model']}, stepping {fields.get('stepping', '?')})"
        )
    if "CPU implementer" in fields:
        return f"{name} (implementer {fields['CPU implementer']}, part {fields.get('CPU part', '?')})"
    return name


def _caches() -> tuple[Cache, ...]:
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    caches = []
    for index in sorted(folder.glob("index*")):
        size = (index / "size").read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1], 1)
        caches.append(
            Cache(
                level=int((index / "level").read_text()),
                kind=(index / "type").read_text().strip(),
                bytes=int(size.rstrip("KMG")) * unit,
                shared_by=_count_of_list((index / "shared_cpu_list").read_text().strip()),
            )
        )
    return tuple(caches)


def _count_of_list(ranges: str) -> int:
    """How many numbers a kernel list such as `0-3,8` names."""
    count = 0
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # a system without these names
        return None


def _system() -> str:
    release = Path("/etc/os-release")
    distribution = ""
    if release.exists():
        fields = dict(line.split("=", 1) for line in release.read_text().splitlines() if "=" in line)
        distribution = fields.get("PRETTY_NAME", "").strip('"') + ", "
    return f"{distribution}{platform.system()} {platform.release()}"
