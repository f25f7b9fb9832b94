"""How the attention kernels are launched: explicit tables by architecture, head size and pass, no search at first call.

`attention_launch` is the one place where launchers ask. `override` puts a choice of the caller's before the tables, and
`bigmodel tune` what it measured on the device (choice.py has the order). The tables follow from what the compiler makes
of them (`bigmodel audit`): no GPU has timed them.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import choice
from .launch import device_facts, family, run

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
    max_registers: int | None = None

    def run(self) -> None:
        options = {name: getattr(self, name) for name in ("num_warps", "num_stages", "max_registers")}
        run(self.kernel, self.grid, *self.arguments, **options)


class Device(NamedTuple):
    """capability is 10 * major + minor; measured_on: where measured launches are looked for, None for a device that is
    not here."""

    capability: int
    multiprocessors: int
    l2_bytes: int
    measured_on: torch.device | None = None


# Small, so that tests meet every boundary soon; four multiprocessors, so that long rows of keys are split.
INTERPRETER = Device(80, 4, 1 << 14, torch.device("cpu"))
_INTERPRETER_LAUNCH = Launch(32, 64, 4, 1)

# By family of architectures (launch.family): (block_m, block_n, num_warps, num_stages) for heads of up to 64, 128, 256
# and 512 features. sm_86, 89 and 120 have 99 KiB of shared memory per block where sm_80 has 163, and the same kind of
# tensor cores as far as Triton uses them. What a family does not list is as on sm_80. What bounds the tiles is
# registers, then shared memory: they are the largest tried that spill nothing up to 128 features (`bigmodel audit`
# shows what the rest spill), within 64 KiB of shared memory on sm_75, 99 on sm_86, 163 on sm_80, 227 on the others.
_HALF = {
    "sm_80": {
        "forward": ((128, 32, 4, 3), (128, 64, 8, 3), (64, 64, 8, 2), (64, 16, 8, 1)),
        "grad_key_value": ((32, 128, 8, 2), (64, 64, 8, 2), (32, 32, 8, 1), (16, 16, 4, 1)),
        "grad_query": ((64, 64, 4, 2), (64, 64, 8, 2), (64, 32, 8, 1), (32, 32, 8, 1)),
        "grad_mask": ((64, 32, 8, 1), (32, 64, 8, 1), (32, 32, 8, 1), (16, 32, 8, 1)),
        "weights": ((64, 64, 4, 1), (64, 64, 4, 1), (64, 32, 8, 1), (32, 32, 8, 1)),
    },
    "sm_86": {
        "forward": ((128, 64, 8, 3), (128, 64, 8, 2), (64, 32, 8, 2), (64, 16, 8, 1)),
        "grad_query": ((64, 64, 4, 2), (64, 64, 8, 2), (64, 32, 8, 1), (32, 16, 8, 1)),
    },
    "sm_90": {
        "forward": ((128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 8, 2), (64, 16, 8, 2)),
        "grad_key_value": ((64, 128, 8, 2), (32, 128, 8, 2), (32, 32, 8, 1), (16, 16, 8, 1)),
        "grad_query": ((128, 64, 8, 2), (128, 64, 8, 2), (32, 32, 8, 1), (32, 32, 8, 1)),
        "grad_mask": ((64, 64, 8, 1), (64, 64, 8, 1), (32, 32, 8, 1), (16, 32, 8, 1)),
    },
    "sm_100": {
        "forward": ((128, 64, 8, 3), (128, 64, 8, 3), (128, 32, 8, 3), (64, 16, 8, 2)),
        "grad_key_value": ((64, 128, 8, 2), (64, 128, 8, 2), (32, 64, 8, 1), (16, 16, 8, 1)),
        "grad_query": ((128, 64, 8, 2), (128, 64, 8, 2), (128, 32, 8, 1), (32, 32, 8, 1)),
        "grad_mask": ((64, 64, 8, 1), (64, 64, 8, 1), (32, 32, 8, 1), (16, 32, 8, 1)),
    },
    # Triton multiplies without tensor cores here, and holds in registers what it multiplies.
    "sm_75": {
        "forward": ((64, 32, 8, 1), (32, 32, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)),
        "grad_key_value": ((32, 32, 8, 1), (32, 32, 8, 1), (16, 32, 8, 1), (16, 8, 8, 1)),
        "grad_query": ((32, 32, 8, 1), (32, 32, 8, 1), (32, 16, 8, 1), (16, 16, 8, 1)),
        "grad_mask": ((32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1)),
        "weights": ((32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1)),
    },
}
_HALF["sm_120"] = _HALF["sm_86"]
# True fp32 runs without tensor cores everywhere.
_IEEE = {
    "forward": ((64, 32, 8, 1), (32, 32, 8, 1), (16, 32, 8, 1), (16, 16, 8, 1)),
    "grad_key_value": ((32, 32, 8, 1), (32, 32, 8, 1), (16, 32, 8, 1), (16, 16, 8, 1)),
    "grad_query": ((32, 32, 8, 1), (64, 32, 8, 1), (32, 32, 8, 1), (32, 16, 8, 1)),
    "grad_mask": ((32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1)),
    "weights": ((32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1)),
}
_IEEE_BY_FAMILY = {
    # 64 KiB of shared memory ask for less.
    "sm_75": {
        "forward": (*_IEEE["forward"][:3], (8, 16, 8, 1)),
        "grad_key_value": (*_IEEE["grad_key_value"][:3], (8, 16, 8, 1)),
    },
    # Code for these architectures takes more registers.
    **dict.fromkeys(
        ("sm_90", "sm_100", "sm_120"),
        {
            "forward": (_IEEE["forward"][0], (16, 32, 8, 1), *_IEEE["forward"][2:]),
        },
    ),
}
_IEEE_BY_FAMILY["sm_86"] = _IEEE_BY_FAMILY["sm_90"] | {"grad_mask": ((16, 32, 8, 1), *_IEEE["grad_mask"][1:])}
_TF32 = {
    "forward": ((64, 32, 4, 2), (64, 32, 8, 2), (32, 32, 8, 1), (16, 16, 8, 1)),
    "grad_key_value": ((32, 64, 8, 1), (32, 32, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)),
    "grad_query": ((64, 32, 8, 1), (32, 32, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)),
    "grad_mask": ((32, 32, 4, 1), (32, 16, 8, 1), (16, 32, 8, 1), (16, 16, 8, 1)),
    "weights": ((64, 32, 4, 1), (64, 32, 8, 1), (32, 32, 8, 1), (16, 16, 8, 1)),
}
# Where four warps for 32 x 32 scores spill, with dropout or without; sm_90 and sm_100 multiply 64 rows at a time.
_TF32_BY_FAMILY = {
    name: {"grad_mask": (blocks, *_TF32["grad_mask"][1:])}
    for names, blocks in ((("sm_86", "sm_120"), (32, 64, 8, 1)), (("sm_90", "sm_100"), (64, 64, 8, 1)))
    for name in names
}
# By family, arithmetic, pass and features: instead of the tables' where there is a mask or dropout, whose tile of
# numbers is in registers beside the scores. Half as many of these at a time spill nothing, causal or not.
_WITH_OPTIONS = {
    ("sm_80", "half"): {"forward": {128: (128, 32, 8, 3)}, "grad_query": {64: (64, 32, 4, 2)}},
    ("sm_86", "half"): {"forward": {128: (128, 32, 8, 3)}, "grad_query": {64: (64, 32, 4, 2)}},
}
_WITH_OPTIONS["sm_120", "half"] = _WITH_OPTIONS["sm_86", "half"] | {"grad_key_value": {64: (16, 128, 8, 2)}}
# The same where registers are enough for a mask, but not for dropout's random numbers.
_WITH_DROPOUT = {
    ("sm_90", "half"): {
        "forward": {64: (128, 64, 8, 3)},
        "grad_key_value": {64: (32, 128, 8, 2), 128: (32, 64, 8, 2)},
        "grad_query": {128: (64, 64, 8, 2)},
    },
    ("sm_100", "half"): {"forward": {128: (128, 32, 8, 3)}},
}
# The same where there are both; where packed sequences or a group's heads take registers too (is_crowded), beside one
# of these or both; and where packed sequences and groups meet without them.
_WITH_BOTH = {("sm_80", "half"): {"grad_key_value": {64: (32, 32, 4, 2)}}}
_CROWDED = {
    ("sm_80", "half"): {
        "forward": {64: (128, 32, 8, 2), 128: (128, 16, 8, 2)},
        "grad_key_value": {64: (16, 128, 8, 2), 128: (64, 32, 8, 2)},
    },
    **_WITH_DROPOUT,
}
_CROWDED_WITH_BOTH = {
    ("sm_80", "half"): {"grad_key_value": {64: (32, 32, 4, 2), 128: (64, 16, 8, 2)}},
    ("sm_90", "half"): {
        "forward": {128: (128, 16, 8, 2)},
        "grad_key_value": {64: (16, 128, 8, 2), 128: (16, 64, 8, 2)},
        "grad_query": {64: (64, 64, 8, 2), 128: (64, 32, 8, 2)},
    },
    ("sm_100", "half"): {
        "forward": {128: (128, 16, 8, 2)},
        "grad_key_value": {64: (32, 128, 8, 2), 128: (32, 128, 8, 1)},
    },
}
_PACKED_AND_GROUPED = {
    ("sm_80", "half"): {"forward": {128: (128, 32, 8, 3)}},
    ("sm_90", "half"): {"grad_key_value": {128: (32, 64, 8, 2)}},
}
for _tables in (_WITH_BOTH, _CROWDED, _CROWDED_WITH_BOTH, _PACKED_AND_GROUPED):
    _tables |= dict.fromkeys((("sm_86", "half"), ("sm_120", "half")), _tables["sm_80", "half"])
_CROWDED_WITH_BOTH["sm_120", "half"] = {"grad_key_value": {64: (32, 32, 4, 1), 128: (64, 16, 8, 2)}}
_CROWDED_WITH_BOTH["sm_75", "half"] = {"grad_key_value": {64: (16, 32, 8, 1)}}
# How many tiles may be loaded ahead where there is an additive mask: Triton loads all that feeds a product ahead, and
# tiles of the mask take as much shared memory as those of keys and values, which the tables do not count with.
_STAGES_WITH_MASK = {"sm_75": 1, "sm_80": 2, "sm_86": 1, "sm_90": 2, "sm_100": 2, "sm_120": 1}
# TF32 with more features would need more shared memory than most devices have.
LARGEST_TF32 = 256

# Before 3.8 Triton's products sum over at least 16 terms in fp32 too. The tables were audited with 3.9.
_FEWEST_TERMS = 8 if tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 8) else 16

# How many features of a row products without tensor cores take at a time, in the passes that read rows again for it.
_CHUNK = 32

_overrides: dict[tuple[str, int, int, str], Launch] = {}


def device_of(x: Tensor) -> Device:
    if x.is_meta:  # for the audit: `launch.recorded` says which device it would be
        return Device(*device_facts(x.device), l2_bytes=0)
    return INTERPRETER if triton.knobs.runtime.interpret else _device(x.device.index)


@functools.cache
def _device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    capability = 10 * properties.major + properties.minor
    measured_on = torch.device("cuda", index)
    return Device(capability, properties.multi_processor_count, properties.L2_cache_size, measured_on)


def override(name: str, capability: int, features: int, arithmetic: str, launch: Launch | None) -> None:
    """From now on attention_launch gives this launch for these arguments of its; None: the table's again."""
    if name not in PASSES:
        raise ValueError(f"[override] '{name}' is not a pass of attention; expected one of {', '.join(PASSES)}")
    if launch is None:
        _overrides.pop((name, capability, features, arithmetic), None)
    else:
        _overrides[name, capability, features, arithmetic] = launch


def arithmetic_of(dtype: torch.dtype, precision: str) -> str:
    """What products multiply: "half" for fp16 and bf16, else "ieee" or "tf32"."""
    return precision if dtype == torch.float32 else "half"


def attention_launch(
    name: str,
    device: Device,
    features: int,
    arithmetic: str,
    mask: Tensor | None = None,
    dropout: bool = False,
    crowded: bool = False,
) -> Launch:
    """The launch of pass `name` (of PASSES). features: the larger of head_dim and value_dim, padded; arithmetic: of
    arithmetic_of; mask: of the scores, boolean or additive; crowded: of is_crowded."""

    def default() -> Launch:
        if triton.knobs.runtime.interpret:
            return _INTERPRETER_LAUNCH
        return table_launch(name, device.capability, features, arithmetic, mask is not None, dropout, crowded)

    override = _overrides.get((name, device.capability, features, arithmetic))
    launch = choice.choose(device.measured_on, (name, arithmetic, features), override, default)
    if launch is override or mask is None or mask.dtype == torch.bool or triton.knobs.runtime.interpret:
        return launch
    return replace(launch, num_stages=min(launch.num_stages, _STAGES_WITH_MASK[family(device.capability)]))


def is_crowded(options: bool, packed: bool, grouped: bool) -> bool:
    """Whether two or more of these take registers at once. options: a mask or dropout; grouped: the heads of a group
    share a program."""
    return options + packed + grouped > 1


def table_launch(
    name: str,
    capability: int,
    features: int,
    arithmetic: str,
    mask: bool = False,
    dropout: bool = False,
    crowded: bool = False,
) -> Launch:
    """The default of attention_launch, but for what an additive mask asks of num_stages."""
    table, size = family(capability), min(max(features, 64), 512)
    both, options = mask and dropout, mask or dropout
    for applies, blocks_of in (
        (crowded and both, _CROWDED_WITH_BOTH),
        (crowded and options, _CROWDED),
        (crowded and not options, _PACKED_AND_GROUPED),
        (both, _WITH_BOTH),
        (options, _WITH_OPTIONS),
        (dropout, _WITH_DROPOUT),
    ):
        if applies and (blocks := blocks_of.get((table, arithmetic), {}).get(name, {}).get(size)):
            return _with_enough_terms(name, Launch(*blocks))
    if arithmetic == "half":
        rows = _HALF["sm_75"] if table == "sm_75" else _HALF["sm_80"] | _HALF[table]
    elif arithmetic == "ieee" or table == "sm_75":
        rows = _IEEE | _IEEE_BY_FAMILY.get(table, {})
    else:
        rows = _TF32 | _TF32_BY_FAMILY.get(table, {})
    return _with_enough_terms(name, Launch(*rows[name][size.bit_length() - 7]))


def features_at_a_time(device: Device, features: int, arithmetic: str, crowded: bool = False) -> int:
    """How many features of a row the products of rows take at a time; 0: all. Without tensor cores a thread holds what
    it multiplies, and whole rows of many features fill its registers; so do rows of 64 and more features, with tensor
    cores too, where much else is in registers (crowded)."""
    if features < 64 or (features == 64 and (arithmetic == "ieee" or not crowded)):
        return 0
    if arithmetic == "ieee" or family(device.capability) == "sm_75":
        return _CHUNK
    return min(features // 2, 64) if crowded else 0


def max_registers(
    name: str, device: Device, features: int, arithmetic: str, crowded: bool = False, dropout: bool = False
) -> int | None:
    """As many registers as a thread can have where the compiler, left alone, would take 80 or 128 and spill a few of
    what it needs, to have more blocks at a time; None: as many as it thinks best."""
    in_parts = name in ("grad_key_value", "grad_query") and features_at_a_time(device, features, arithmetic) > 0
    of_many = name in ("grad_query", "grad_mask") and crowded
    of_random = name == "grad_mask" and dropout and (arithmetic == "tf32" or (arithmetic == "half" and features > 256))
    # For which shared memory holds one block, whatever the registers.
    large = name == "grad_key_value" and family(device.capability) == "sm_120" and 64 < features <= 128
    in_tf32 = arithmetic == "tf32" and (name == "forward" or large)
    return 255 if in_parts or of_many or of_random or in_tf32 else None


def _with_enough_terms(name: str, launch: Launch) -> Launch:
    """With tiles whose shared side, over which a product sums, is no shorter than this Triton multiplies."""
    if name == "grad_key_value":
        return replace(launch, block_m=max(launch.block_m, _FEWEST_TERMS))
    if name in ("forward", "grad_query"):
        return replace(launch, block_n=max(launch.block_n, _FEWEST_TERMS))
    return launch


def heads_per_section(heads: int, kv_bytes_per_head: int, group: int, device: Device) -> int:
    """How many of the query heads of all batches run side by side: those whose keys and values half of the L2 cache
    holds. No more than there are, since kernels multiply the number by that of tiles in 32 bits."""
    return min(heads, group * max(1, device.l2_bytes // 2 // max(kv_bytes_per_head, 1)))


def key_splits(programs: int, key_blocks: int, device: Device) -> int:
    """Into how many parts to split the keys: 1 where the programs fill the device or there is little to split; else the
    fewest parts that leave the device nearly as busy as the best number would."""
    if programs == 0 or programs >= 0.8 * device.multiprocessors or key_blocks <= 4:
        return 1
    waves = [programs * splits / device.multiprocessors for splits in range(1, min(key_blocks // 2, 64) + 1)]
    busy = [wave / -(-wave // 1) for wave in waves]
    return next(splits for splits, share in enumerate(busy, 1) if share >= 0.85 * max(busy))
