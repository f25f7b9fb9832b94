"""How each kernel is launched: explicit tables by architecture, with no search at the first call.

`product_launch` and `norm_launch` are the only places where a launcher finds its blocks. `override` puts a choice of
the caller's in front of the table, and `bigmodel tune` what it measured on the device (choice.py has the order). The
tables themselves follow from what the compiler makes of them (`bigmodel audit`): no GPU has timed them.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import choice


@dataclass(frozen=True)
class ProductLaunch:
    """Blocks of a matrix product: rows m and columns n of the result, k of the terms summed at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group_m: int = 8  # rows of blocks that run one after another, so that the L2 cache serves their columns again
    max_registers: int | None = None  # per thread; None: as many as the compiler thinks best

    def blocks(self, m: int, n: int) -> int:
        return triton.cdiv(m, self.block_m) * triton.cdiv(n, self.block_n)


@dataclass(frozen=True)
class NormLaunch:
    """Blocks of add_norm: rows and columns that a program holds at a time."""

    block_rows: int
    block_columns: int
    num_warps: int


class Launch(NamedTuple):
    """One launch of a kernel: `arguments` by name, compile-time ones among them."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    max_registers: int | None


# Architectures that share a table; a newer one that is not listed takes the last below it.
FAMILIES = {75: "sm_75", 80: "sm_80", 86: "sm_86", 87: "sm_86", 89: "sm_86", 90: "sm_90", 100: "sm_100", 120: "sm_120"}

_INTERPRETER_FACTS = 80, 4
_INTERPRETED = ProductLaunch(64, 64, 64, 1, 1, group_m=2)
_INTERPRETED_NORM_COLUMNS = 256

# Blocks by family and kind of kernel, from large to small: the first that gives every multiprocessor one is taken.
# Kinds: "plain" products, with at most a bias and ReLU; "epilogue" with more than that; "gradient", whose epilogue has
# the derivatives of activation and gate; "derivative", which takes one as it reads, or adds up a bias's gradient;
# "pair" of accumulators. Shared memory bounds the blocks (163 KiB on sm_80, 99 on sm_86, 227 on sm_90 and sm_100), and
# so do registers: `bigmodel audit` shows when they spill.
_HALF_BLOCKS = {
    "sm_80": {
        "plain": ((128, 256, 64, 8, 3), (128, 128, 64, 8, 3), (64, 64, 64, 4, 4)),
        "epilogue": ((128, 128, 64, 8, 3), (64, 64, 64, 4, 4)),
        "gradient": ((128, 64, 64, 8, 3), (64, 64, 64, 8, 3)),
        "derivative": ((128, 128, 32, 8, 4), (64, 64, 64, 4, 3)),
        "pair": ((128, 64, 64, 8, 3), (64, 64, 32, 4, 4)),
    },
    "sm_86": {
        "plain": ((128, 128, 32, 8, 4), (64, 64, 64, 4, 3)),
        "epilogue": ((128, 128, 32, 8, 4), (64, 64, 64, 4, 3)),
        "gradient": ((128, 64, 32, 8, 4), (64, 64, 64, 8, 3)),
        "derivative": ((128, 64, 32, 8, 3), (64, 64, 32, 4, 3)),
        "pair": ((128, 64, 32, 8, 4), (64, 32, 64, 4, 3)),
    },
    "sm_90": {
        "plain": ((128, 256, 64, 8, 3), (128, 128, 64, 8, 4), (64, 64, 64, 4, 4)),
        "epilogue": ((128, 128, 64, 8, 4), (64, 64, 64, 4, 4)),
        "gradient": ((128, 64, 64, 8, 4), (64, 64, 64, 4, 4)),
        "derivative": ((128, 128, 32, 8, 4), (64, 64, 64, 4, 3)),
        "pair": ((128, 128, 64, 8, 3), (64, 64, 64, 4, 4)),
    },
    "sm_100": {
        "plain": ((128, 256, 64, 8, 3), (128, 128, 64, 8, 4), (128, 64, 64, 4, 4)),
        "epilogue": ((128, 128, 64, 8, 4), (128, 64, 64, 4, 4)),
        "gradient": ((128, 64, 64, 8, 4),),
        "derivative": ((128, 128, 32, 8, 4), (128, 64, 64, 8, 3)),
        "pair": ((128, 128, 64, 8, 3), (128, 64, 64, 4, 4)),
    },
}
_KINDS = ("plain", "epilogue", "gradient", "derivative")
# True fp32 runs on the ordinary units and is bound by registers; so does fp16 on sm_75, where Triton (3.9) has no
# tensor-core products. Left alone, the compiler takes 72 or 96 registers for some kernels in fp32, to have one more
# block at a time, and spills up to 14 times to get there; told to use 128, which four blocks have, it spills nothing.
_IEEE_REGISTERS = 128
_FMA_BLOCKS = dict.fromkeys(_KINDS, ((64, 64, 16, 4, 3),)) | {"pair": ((64, 32, 16, 4, 3),)}
_HALF_BLOCKS["sm_75"] = _FMA_BLOCKS
# As sm_86, but for what its compiler spills.
_HALF_BLOCKS["sm_120"] = _HALF_BLOCKS["sm_86"] | {"derivative": ((64, 64, 64, 4, 3),)}
_TF32_BLOCKS = dict.fromkeys(_KINDS, ((128, 64, 32, 8, 3),)) | {"pair": ((64, 64, 32, 8, 3),)}

_overrides: dict[tuple, ProductLaunch] = {}


class _Recorder:
    """While `recorded` runs: what was launched, on a device that need not exist."""

    facts: tuple[int, int] | None = None
    tf32: bool | None = None
    launches: list[Launch] = []


def run(
    kernel,
    grid: tuple[int, ...],
    *arguments,
    num_warps: int = 4,
    num_stages: int = 3,
    max_registers: int | None = None,
    **named,
) -> None:
    """Launches a kernel on the device of its tensors, which need not be the current one."""
    if _Recorder.facts is not None:
        bound = dict(zip(kernel.arg_names, arguments, strict=False)) | named
        _Recorder.launches.append(Launch(kernel, grid, bound, num_warps, num_stages, max_registers))
        return
    options = {"num_warps": num_warps, "num_stages": num_stages}
    if max_registers is not None:
        options["maxnreg"] = max_registers
    with _on_device_of(arguments):
        if not triton.knobs.runtime.interpret:
            arguments = [as_constexpr(x) if i in kernel.constexprs else x for i, x in enumerate(arguments)]
            named = {name: as_constexpr(x) for name, x in named.items()}  # run-time arguments come by position
        kernel[grid](*arguments, **named, **options)


def as_constexpr(argument: Any) -> Any:
    """A constexpr argument as compiled kernels take it: a named tuple's numbers and strings are constexpr themselves,
    since up to Triton 3.7 its fields are bare values inside of a kernel, and neither shapes take a bare number nor
    helpers a bare string."""
    return _fields_as_constexpr(argument) if isinstance(argument, tuple) else argument


@functools.cache
def _fields_as_constexpr(fields: tuple) -> tuple:
    return type(fields)(*(each if isinstance(each, bool) else triton.language.constexpr(each) for each in fields))


@contextlib.contextmanager
def recorded(capability: int, multiprocessors: int, tf32: bool | None = None) -> Iterator[list[Launch]]:
    """Collects what would be launched on such a device, of tensors without data, instead of launching it. tf32: whether
    TF32 is allowed; None: as torch's switch says."""
    _Recorder.facts, _Recorder.tf32, _Recorder.launches = (capability, multiprocessors), tf32, []
    try:
        yield _Recorder.launches
    finally:
        _Recorder.facts = _Recorder.tf32 = None


def family(capability: int) -> str:
    """The table's name for a compute capability, as 90 for 9.0."""
    return FAMILIES[max(each for each in FAMILIES if each <= capability)]


def product_launches(capability: int, kind: str, arithmetic: str) -> tuple[ProductLaunch, ...]:
    """The table's row. arithmetic: "half" (bf16, fp16), "ieee" (true fp32) or "tf32"."""
    tables = {"half": _HALF_BLOCKS[family(capability)], "ieee": _FMA_BLOCKS, "tf32": _TF32_BLOCKS}
    max_registers = _IEEE_REGISTERS if arithmetic == "ieee" else None
    return tuple(ProductLaunch(*blocks, max_registers=max_registers) for blocks in tables[arithmetic][kind])


def product_launch(device: torch.device, kind: str, arithmetic: str, m: int, n: int, k: int) -> ProductLaunch:
    """The launch of an m x n product of k terms each."""
    capability, multiprocessors = device_facts(device)

    def default() -> ProductLaunch:
        if triton.knobs.runtime.interpret:
            return _INTERPRETED
        launches = product_launches(capability, kind, arithmetic)
        return next((each for each in launches if each.blocks(m, n) >= multiprocessors), launches[-1])

    key = (kind, arithmetic, _size_class(m), _size_class(n), _size_class(k))
    measured_on = device if _Recorder.facts is None else None
    return choice.choose(measured_on, key, _overrides.get((capability, *key)), default)


def override(capability: int, kind: str, arithmetic: str, m: int, n: int, k: int, launch: ProductLaunch) -> None:
    """Uses a launch, instead of the table's, for products whose sizes are of the same powers of two."""
    _overrides[capability, kind, arithmetic, _size_class(m), _size_class(n), _size_class(k)] = launch


def norm_launch(width: int) -> NormLaunch:
    """Whole rows where they fit into a program's registers, several of them where they are short."""
    largest = _INTERPRETED_NORM_COLUMNS if triton.knobs.runtime.interpret else 8192
    columns = min(triton.next_power_of_2(width), largest)
    if width > largest:  # in chunks, of several rows, whose parts of the parameters' gradients are then added together
        return NormLaunch(4, 2048 if width > 8192 else largest, num_warps=8)
    rows = max(1, 1024 // columns)
    return NormLaunch(rows, columns, num_warps=max(1, min(16, rows * columns // 512)))


def programs(device: torch.device) -> int:
    """How many programs share the rows where each keeps partial sums of its own."""
    return 3 if triton.knobs.runtime.interpret else 2 * device_facts(device)[1]


def matmul_arithmetic(dtype: torch.dtype, device: torch.device) -> str:
    """What a product of this dtype is computed in: "half", "ieee" or, where torch's own switch allows it, "tf32"."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if tf32_allowed(device) else "ieee"


def tf32_allowed(device: torch.device) -> bool:
    """Whether torch's switch allows TF32 products and the device has them: a CUDA one from sm_80 on, or "meta" for what
    the audit compiles, which stands for such a one unless `recorded` says otherwise.

    fp32_precision knows of the older switches too: allow_tf32 and set_float32_matmul_precision write it. They
    themselves must not be read: they raise once the two interfaces were set to different things.
    """
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32" if _Recorder.tf32 is None else _Recorder.tf32
    if device.type not in ("cuda", "meta") or not allowed:
        return False
    return (device.type == "meta" and _Recorder.facts is None) or device_facts(device)[0] >= 80


def _on_device_of(arguments: tuple) -> contextlib.AbstractContextManager:
    """Makes the device of a kernel's first tensor the current one, on which Triton launches."""
    tensor = next(_tensors(arguments))
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _tensors(arguments: tuple) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, tuple):
            yield from _tensors(argument)


def device_facts(device: torch.device) -> tuple[int, int]:
    """(compute capability as 90, multiprocessors)"""
    if _Recorder.facts is None and triton.knobs.runtime.interpret:
        return _INTERPRETER_FACTS
    return _Recorder.facts or _facts_of(device)


@functools.cache
def _facts_of(device: torch.device) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


def _size_class(size: int) -> int:
    return triton.next_power_of_2(size)
