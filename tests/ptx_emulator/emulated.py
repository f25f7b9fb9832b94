"""The project's CUDA kernels on CPU tensors: `torch.ops.bigmodel_emulated`, and the backend "cuda" made of it."""

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from unittest import mock

import torch

from bigmodel_kernels import backends, ops

from . import Emulator, building, library

# Oldest device that each build's PTX is for, newest first.
NAMESPACES = {(12, 0): "bigmodel_emulated_sm_120", (8, 0): "bigmodel_emulated", (7, 5): "bigmodel_emulated_sm_75"}
NAMESPACE = NAMESPACES[8, 0]


@functools.cache
def _tensor_memory() -> ctypes.CDLL:
    return ctypes.CDLL(str(building.built("tensor_memory")))


@functools.cache
def namespace(name: str = NAMESPACE):
    """torch.ops.bigmodel_emulated (or a twin for sm_75 or sm_120), with gradients; from now on every new CPU tensor is
    the device's memory."""
    library()
    _tensor_memory().tensor_memory_on()
    torch.ops.load_library(building.checked(building.built(name)))
    ops.register(name)
    return getattr(torch.ops, name)


@contextlib.contextmanager
def cuda_backend(capability: tuple[int, int] = (8, 0)) -> Iterator[Emulator]:
    """Inside, the backend "cuda" runs CPU tensors, made inside or after a first use, on the emulator, with the code of
    a device of this compute capability."""
    emulated = namespace(next(name for oldest, name in NAMESPACES.items() if capability >= oldest))
    reasons, choose = backends._reasons, backends._namespace

    def no_reasons(name: str, device: torch.device, dtype: torch.dtype) -> list[str]:
        return [] if name == "cuda" and device.type == "cpu" else reasons(name, device, dtype)

    def chosen(name: str):
        return emulated if name == "cuda" else choose(name)

    with mock.patch.object(backends, "_reasons", no_reasons), mock.patch.object(backends, "_namespace", chosen):
        yield Emulator()


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, what tensors leave stays the device's memory: for a graph that runs again."""
    _tensor_memory().tensor_memory_keep(1)
    try:
        yield
    finally:
        _tensor_memory().tensor_memory_keep(0)
