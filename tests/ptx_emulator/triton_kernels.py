"""Triton kernels, compiled for sm_80 and run by the emulator."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bigmodel_kernels.triton.audit_case import specialization

from . import Emulator

_SCRATCH_POINTERS = 2  # parameters that Triton adds behind ours: global and profiling scratch


@functools.cache
def _compiled(kernel, signature, constexprs, divisible, num_warps: int, num_stages: int):
    attributes = {path: [["tt.divisibility", 16]] for path in divisible}
    source = ASTSource(kernel, signature.value, constexprs.value, attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)


class _Key:
    """A value that cannot be hashed, told apart by its text."""

    def __init__(self, value):
        self.value = value

    def __hash__(self) -> int:
        return hash(repr(self.value))

    def __eq__(self, other) -> bool:
        return repr(self.value) == repr(other.value)


def run(
    emulator: Emulator,
    kernel,
    grid: tuple[int, ...],
    arguments: dict[str, Any],
    num_warps: int = 4,
    num_stages: int = 3,
    uninitialised: tuple[str, ...] = (),
) -> str:
    """Launches a kernel with its arguments by name, as Triton's own launcher would; returns its PTX. Its tensors become
    buffers, those of `uninitialised` without contents."""
    signature, constexprs, divisible = specialization(kernel, arguments)
    compiled = _compiled(kernel, _Key(signature), _Key(constexprs), divisible, num_warps, num_stages)
    text = compiled.asm["ptx"]
    values = []
    for position, parameter in enumerate(kernel.params):
        if parameter.is_constexpr:
            continue
        for path, value in _leaves(arguments[parameter.name], (position,)):
            if path in constexprs:
                continue
            values.append(value)
            if isinstance(value, torch.Tensor):
                emulator.buffer(value, parameter.name, initialised=parameter.name not in uninitialised)
    values += [None] * _SCRATCH_POINTERS
    try:
        emulator.launch_ptx(text, compiled.metadata.name, grid, (32 * num_warps,), values, compiled.metadata.shared)
    finally:
        emulator.forget(*(value for value in values if isinstance(value, torch.Tensor)))
    return text


def _leaves(argument, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Any]]:
    if isinstance(argument, tuple):
        for position, each in enumerate(argument):
            yield from _leaves(each, (*path, position))
    else:
        yield path, argument
