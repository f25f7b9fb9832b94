"""What an architecture offers a kernel: the figures behind occupancy and limiter.

Sources: the compute capability tables of the CUDA C++ programming guide, and NVIDIA's white papers for the named
devices (dense tensor-core peaks with fp32 accumulation, at the boost clock that the peak assumes).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Limits of one multiprocessor, and the named device's operations and bytes per clock and multiprocessor."""

    name: str
    device: str
    mma: str  # what tensor-core instructions are called in its machine code
    warps: int
    blocks: int
    shared_bytes: int
    block_shared_bytes: int
    mma_flops: float  # bf16 or fp16
    fp32_flops: float
    memory_bytes: float
    registers: int = 65536
    exps: int = 16
    shared_load_bytes: int = 128
    issues: int = 4  # instructions, each by a warp: one by each of four schedulers


def _rates(tflops: float, gigabytes_per_s: float, multiprocessors: int, gigahertz: float) -> tuple[float, float]:
    return 1e3 * tflops / (multiprocessors * gigahertz), gigabytes_per_s / (multiprocessors * gigahertz)


def _architecture(
    name: str,
    device: str,
    mma: str,
    warps: int,
    blocks: int,
    shared_kib: int,
    reserved_kib: int,
    fp32_flops: int,
    rates: tuple[float, float],
) -> Architecture:
    shared = shared_kib * 1024
    return Architecture(
        name, device, mma, warps, blocks, shared, shared - reserved_kib * 1024, rates[0], fp32_flops, rates[1]
    )


# 128 or 256 fp32 operations per clock are 64 or 128 multiply-adds.
BY_CAPABILITY = {
    75: _architecture("sm_75", "T4", "HMMA", 32, 16, 64, 0, 128, _rates(65, 320, 40, 1.59)),
    80: _architecture("sm_80", "A100 SXM 80 GB", "HMMA", 64, 32, 164, 1, 128, _rates(312, 2039, 108, 1.41)),
    86: _architecture("sm_86", "RTX 3090", "HMMA", 48, 16, 100, 1, 256, _rates(71, 936, 82, 1.695)),
    89: _architecture("sm_89", "RTX 4090", "HMMA", 48, 24, 100, 1, 256, _rates(165.2, 1008, 128, 2.52)),
    90: _architecture("sm_90", "H100 SXM", "HGMMA", 64, 32, 228, 1, 256, _rates(989, 3350, 132, 1.83)),
    100: _architecture("sm_100", "B200", "UTCHMMA", 64, 32, 228, 1, 256, _rates(2250, 8000, 148, 1.85)),
    120: _architecture("sm_120", "RTX 5090", "HMMA", 48, 24, 100, 1, 256, _rates(209.5, 1792, 170, 2.41)),
}


def blocks_per_multiprocessor(
    architecture: Architecture, warps: int, registers: int, shared_bytes: int
) -> tuple[int, str]:
    """How many blocks run on a multiprocessor at once, and which resource ends first. Registers are handed out by warp
    in units of 256, shared memory by block in units of 128 bytes plus what the system reserves."""
    reserved = architecture.shared_bytes - architecture.block_shared_bytes
    registers_of_block = warps * -(-registers * 32 // 256) * 256
    shared_of_block = -(-shared_bytes // 128) * 128 + reserved
    limits = {
        "warps": architecture.warps // warps,
        "blocks": architecture.blocks,
        "registers": architecture.registers // registers_of_block,
        "shared memory": architecture.shared_bytes // shared_of_block if shared_of_block else architecture.blocks,
    }
    limiter = min(limits, key=limits.get)
    return limits[limiter], limiter
