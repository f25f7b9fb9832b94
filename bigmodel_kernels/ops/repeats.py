"""Calls that are made twice.

Kernels check the tensors that they are given, in a fraction of the time that Python takes, which small models feel.
So a call that goes straight to them leaves its tensors to them, and is made again, with all checks in Python and
through the dispatcher, once they have refused it: to name the arguments as they are documented, or because a tensor is
of a kind that only the dispatcher knows.
"""

import functools
import threading
from collections.abc import Callable

import torch
from torch import Tensor


class _Current(threading.local):
    """Of the latest call in this thread. straight: it went straight to the kernels, and what fails is a refusal, until
    they have accepted it: what fails then, a hook of the user's say, must not happen twice. running: it is made again.
    seed: drawn for it."""

    straight = False
    running = False
    seed: Tensor | None = None


current = _Current()


def repeated(function: Callable) -> Callable:
    """A function that is called again if it fails while `current.straight`, which it sets whenever it is called."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        if kwargs and not torch.compiler.is_compiling():
            current.seed = None
        try:
            return function(*args, **kwargs)
        except Exception:
            if torch.compiler.is_compiling() or not current.straight:
                raise
        current.running = True
        try:
            return function(*args, **kwargs)
        finally:
            current.running = False

    return call


def dropout_seed(x: Tensor) -> Tensor:
    """A seed from torch's default generator: one for a call, however often it is made."""
    if current.running and current.seed is not None:
        return current.seed
    seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=x.device)
    if not torch.compiler.is_compiling():
        current.seed = seed
    return seed
