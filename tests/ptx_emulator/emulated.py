"""The project's CUDA kernels on CPU tensors: `torch.ops.bigmodel_emulated`, and the backend "cuda" made of it."""

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from unittest import mock

import torch

from bigmodel_kernels import backends, ops

from . import Emulator, building, library

NAMESPACE = "bigmodel_emulated"


@functools.cache
def namespace():
    """torch.ops.bigmodel_emulated, with gradients; from now on every new CPU tensor is memory of the device."""
    library()
    ctypes.CDLL(str(building.built("tensor_memory"))).tensor_memory_on()
    torch.ops.load_library(building.built(NAMESPACE))
    ops.register(NAMESPACE)
    return getattr(torch.ops, NAMESPACE)


@contextlib.contextmanager
def cuda_backend() -> Iterator[Emulator]:
    """Inside, the backend "cuda" runs CPU tensors, made inside or after a first use, on the emulator."""
    emulated = namespace()
    reasons, choose = backends._reasons, backends._namespace

    def no_reasons(name: str, device: torch.device, dtype: torch.dtype) -> list[str]:
        return [] if name == "cuda" and device.type == "cpu" else reasons(name, device, dtype)

    def chosen(name: str):
        return emulated if name == "cuda" else choose(name)

    with mock.patch.object(backends, "_reasons", no_reasons), mock.patch.object(backends, "_namespace", chosen):
        yield Emulator()
