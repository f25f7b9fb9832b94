"""The device to measure on, or why there is none."""

import importlib.util
from dataclasses import dataclass

import torch

from ..interpreter import interpreted


@dataclass(frozen=True)
class Limits:
    """capability is 10 * major + minor; shared_bytes: of shared memory that one block may have."""

    capability: int
    shared_bytes: int


def measured_device(index: int = 0) -> torch.device:
    """The CUDA device to measure on. Raises: ValueError where nothing can be measured, and why."""
    if importlib.util.find_spec("triton") is None:
        raise ValueError("[tune] the package triton, whose kernels are measured, is not installed")
    if interpreted():
        raise ValueError("[tune] TRITON_INTERPRET is set, and the times of interpreted kernels say nothing; unset it")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ValueError("[tune] torch sees no CUDA device, and launches can only be measured on the device itself")
    if not 0 <= index < count:
        raise ValueError(f"[tune] device is {index}, expected 0 to {count - 1}: torch sees {count} CUDA devices")
    return torch.device("cuda", index)


def limits_of(device: torch.device) -> Limits:
    properties = torch.cuda.get_device_properties(device)
    return Limits(10 * properties.major + properties.minor, properties.shared_memory_per_block_optin)
