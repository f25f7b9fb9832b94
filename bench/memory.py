"""Peak extra memory of a call, as torch's allocator sees it.

torch's profiler records every allocation and release that goes through torch's CPU allocator, with its size and time.
The running sum of these, from the start of the call, has a highest point: the most bytes that were held beyond what was
held before the call. Outputs and gradients are in it, and so is the workspace of our kernels, which the binding takes
from the same allocator; what it keeps of one from call to call is given back before. Not in it: what a library below
torch (oneDNN, MKL) takes by malloc for itself.
"""

import contextlib
import os
from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile

import bigmodel_kernels as bmk


def peak_extra_bytes(call: Callable[[], object]) -> int:
    """Runs `call` once and returns the most bytes that it held at any time beyond those held at its start."""
    bmk.release_workspace()
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _silent_stderr():
        profiler.start()
    try:
        result = call()
    finally:
        with _silent_stderr():
            profiler.stop()
    del result
    held = peak = 0
    for event in sorted(_memory_events(profiler), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _memory_events(profiler: profile) -> list:
    return [
        event
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU
    ]


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Nothing reaches stderr: torch's profiler logs a line from C++ whenever it starts and stops."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
