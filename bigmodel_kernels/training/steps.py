"""What the training loops share: draws that a step alone decides, autocast, and stopping between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopped(Exception):
    """Training was asked to stop (Ctrl-C), and has saved its checkpoint."""


def generator_of(*numbers: int) -> torch.Generator:
    """A generator seeded by several numbers: equal numbers give equal draws."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (1 << 63)
    return torch.Generator().manual_seed(seed)


def autocast(dtype: str) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16")


@contextmanager
def interrupt_asked() -> Iterator[threading.Event]:
    """Inside, a first Ctrl-C only sets the event, so that no step is cut in two; a second one interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield asked
        return

    def note(number, frame):
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
