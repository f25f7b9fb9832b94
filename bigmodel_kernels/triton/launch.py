"""How each kernel is launched: explicit tables by architecture, with no search at the first call.

`product_launch` and `norm_launch` are the only places where a launcher finds its blocks; `override` puts a measured
choice in front of the table.
"""

import functools
from dataclasses import dataclass

import torch
import triton


@dataclass(frozen=True)
class ProductLaunch:
    """Blocks of a matrix product: rows m and columns n of the result, k of the terms summed at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group_m: int = 8  # rows of blocks that run one after another, so that the L2 cache serves their columns again

    def blocks(self, m: int, n: int) -> int:
        return triton.cdiv(m, self.block_m) * triton.cdiv(n, self.block_n)


@dataclass(frozen=True)
class NormLaunch:
    """Blocks of add_norm: rows and columns that a program holds at a time."""

    block_rows: int
    block_columns: int
    num_warps: int


# Architectures that share a table; a newer one that is not listed takes the last below it.
FAMILIES = {75: "sm_75", 80: "sm_80", 86: "sm_86", 87: "sm_86", 89: "sm_86", 90: "sm_90", 100: "sm_100", 120: "sm_86"}

_INTERPRETED = ProductLaunch(32, 32, 32, 1, 1, group_m=2)
_INTERPRETED_NORM_COLUMNS = 256

# By family and kernel: "product" has one accumulator, "pair" two (both halves of a gated layer). From large blocks to
# small: the first that gives every multiprocessor a block is taken. Shared memory is what bounds them: 64 KiB on sm_75,
# 163 on sm_80, 99 on sm_86, 227 on sm_90 and sm_100.
_HALF = {
    "sm_75": {
        "product": (ProductLaunch(128, 128, 32, 8, 2), ProductLaunch(64, 64, 32, 4, 2)),
        "pair": (ProductLaunch(128, 64, 32, 8, 2), ProductLaunch(64, 32, 32, 4, 2)),
    },
    "sm_80": {
        "product": (
            ProductLaunch(128, 256, 64, 8, 3),
            ProductLaunch(128, 128, 32, 4, 4),
            ProductLaunch(64, 64, 64, 4, 4),
        ),
        "pair": (ProductLaunch(128, 128, 32, 8, 4), ProductLaunch(64, 64, 64, 4, 3)),
    },
    "sm_86": {
        "product": (ProductLaunch(128, 128, 32, 8, 4), ProductLaunch(64, 64, 64, 4, 3)),
        "pair": (ProductLaunch(128, 64, 32, 8, 4), ProductLaunch(64, 32, 64, 4, 3)),
    },
    "sm_90": {
        "product": (
            ProductLaunch(128, 256, 64, 8, 3),
            ProductLaunch(128, 128, 64, 8, 4),
            ProductLaunch(64, 64, 64, 4, 4),
        ),
        "pair": (ProductLaunch(128, 128, 64, 8, 3), ProductLaunch(64, 64, 64, 4, 4)),
    },
    "sm_100": {
        "product": (
            ProductLaunch(128, 256, 64, 8, 3),
            ProductLaunch(128, 128, 64, 8, 4),
            ProductLaunch(128, 64, 64, 4, 4),
        ),
        "pair": (ProductLaunch(128, 128, 64, 8, 3), ProductLaunch(128, 64, 64, 4, 4)),
    },
}
# True fp32 runs on the ordinary units and is bound by registers.
_FP32 = {"product": (ProductLaunch(64, 64, 16, 4, 3),), "pair": (ProductLaunch(64, 32, 16, 4, 3),)}
_TF32 = {"product": (ProductLaunch(128, 64, 32, 8, 3),), "pair": (ProductLaunch(64, 64, 32, 8, 3),)}

_overrides: dict[tuple, ProductLaunch] = {}


def family(capability: int) -> str:
    """The table's name for a compute capability, as 90 for 9.0."""
    return FAMILIES[max(each for each in FAMILIES if each <= capability)]


def product_launches(capability: int, kind: str, arithmetic: str) -> tuple[ProductLaunch, ...]:
    """The table's row. arithmetic: "half" (bf16, fp16), "ieee" (true fp32) or "tf32"."""
    if arithmetic == "half":
        return _HALF[family(capability)][kind]
    return (_FP32 if arithmetic == "ieee" else _TF32)[kind]


def product_launch(device: torch.device, kind: str, arithmetic: str, m: int, n: int, k: int) -> ProductLaunch:
    """The launch of an m x n product of k terms each."""
    if triton.knobs.runtime.interpret:
        return _INTERPRETED
    capability, multiprocessors = _device_facts(device)
    chosen = _overrides.get((capability, kind, arithmetic, _size_class(m), _size_class(n), _size_class(k)))
    if chosen is not None:
        return chosen
    launches = product_launches(capability, kind, arithmetic)
    return next((each for each in launches if each.blocks(m, n) >= multiprocessors), launches[-1])


def override(capability: int, kind: str, arithmetic: str, m: int, n: int, k: int, launch: ProductLaunch) -> None:
    """Uses a launch, instead of the table's, for products whose sizes are of the same powers of two."""
    _overrides[capability, kind, arithmetic, _size_class(m), _size_class(n), _size_class(k)] = launch


def norm_launch(width: int) -> NormLaunch:
    """Whole rows where they fit into a program's registers, several of them where they are short."""
    largest = _INTERPRETED_NORM_COLUMNS if triton.knobs.runtime.interpret else 8192
    columns = min(triton.next_power_of_2(width), largest)
    if width > largest:  # in chunks, of several rows, whose parts of the parameters' gradients are then added together
        return NormLaunch(4, min(largest, 2048), num_warps=8)
    rows = max(1, 1024 // columns)
    return NormLaunch(rows, columns, num_warps=max(1, min(16, rows * columns // 512)))


def programs(device: torch.device) -> int:
    """How many programs share the rows where each keeps partial sums of its own."""
    return 3 if triton.knobs.runtime.interpret else 2 * _device_facts(device)[1]


def matmul_arithmetic(dtype: torch.dtype, device: torch.device) -> str:
    """What a product of this dtype is computed in: "half", "ieee" or, where torch's own switch allows it, "tf32"."""
    if dtype != torch.float32:
        return "half"
    if device.type != "cuda" or torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "ieee"
    return "tf32" if _device_facts(device)[0] >= 80 else "ieee"


@functools.cache
def _device_facts(device: torch.device) -> tuple[int, int]:
    """(compute capability as 90, multiprocessors)"""
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


def _size_class(size: int) -> int:
    return triton.next_power_of_2(size)
