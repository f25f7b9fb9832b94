"""How the attention kernels are launched: explicit tables by architecture, head size and pass, no search at first call.

`attention_launch` is the one place where launchers ask; `override` puts a choice of the caller's before the tables.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

PASSES = ("forward", "grad_key_value", "grad_query", "grad_mask", "weights")


@dataclass(frozen=True)
class Launch:
    """block_m queries by block_n keys at a time, in so many warps; num_stages tiles are loaded ahead."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


class Call(NamedTuple):
    """One kernel launch: what a launcher is about to run, and what the audit compiles."""

    name: str  # of the pass, or of a kernel beside the passes
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple
    num_warps: int = 4
    num_stages: int = 1

    def run(self) -> None:
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        self.kernel[self.grid](*self.arguments, **options)


class Device(NamedTuple):
    """capability is 10 * major + minor."""

    capability: int
    multiprocessors: int
    l2_bytes: int


# Small, so that tests meet every boundary soon; four multiprocessors, so that long rows of keys are split.
INTERPRETER = Device(80, 4, 1 << 14)
_INTERPRETER_LAUNCH = Launch(32, 64, 4, 1)

_overrides: dict[tuple[str, int, int, torch.dtype], Launch] = {}


def device_of(x: Tensor) -> Device:
    return INTERPRETER if triton.knobs.runtime.interpret else _device(x.device.index)


@functools.cache
def _device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    capability = 10 * properties.major + properties.minor
    return Device(capability, properties.multi_processor_count, properties.L2_cache_size)


def override(name: str, capability: int, features: int, dtype: torch.dtype, launch: Launch | None) -> None:
    """Launches pass `name` (of PASSES) for this capability, padded head size and dtype so; None: by the table again."""
    if name not in PASSES:
        raise ValueError(f"[override] '{name}' is not a pass of attention; expected one of {', '.join(PASSES)}")
    if launch is None:
        _overrides.pop((name, capability, features, dtype), None)
    else:
        _overrides[name, capability, features, dtype] = launch


def attention_launch(name: str, capability: int, features: int, dtype: torch.dtype) -> Launch:
    """The launch of pass `name` (of PASSES). features: the larger of head_dim and value_dim, padded."""
    chosen = _overrides.get((name, capability, features, dtype))
    if chosen is not None:
        return chosen
    if triton.knobs.runtime.interpret:
        return _INTERPRETER_LAUNCH
    return table_launch(name, capability, features, dtype)


def table_launch(name: str, capability: int, features: int, dtype: torch.dtype) -> Launch:
    return Launch(64, 64, 4, 2)


def heads_per_section(kv_bytes_per_head: int, group: int, device: Device) -> int:
    """How many query heads run side by side: those whose keys and values half of the L2 cache holds."""
    return group * max(1, device.l2_bytes // 2 // max(kv_bytes_per_head, 1))


def key_splits(programs: int, key_blocks: int, device: Device) -> int:
    """Into how many parts to split the keys: 1 where the programs fill the device or there is little to split; else the
    fewest parts that leave the device nearly as busy as the best number would."""
    if programs == 0 or programs >= 0.8 * device.multiprocessors or key_blocks <= 4:
        return 1
    waves = [programs * splits / device.multiprocessors for splits in range(1, min(key_blocks // 2, 64) + 1)]
    busy = [wave / -(-wave // 1) for wave in waves]
    return next(splits for splits, share in enumerate(busy, 1) if share >= 0.85 * max(busy))
