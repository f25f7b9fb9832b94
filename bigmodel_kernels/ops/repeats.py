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
    """Of the running call in this thread. possible: it has gone straight to the kernels, which have not accepted it
    yet; what fails later, a hook of the user's say, must not happen twice. running: it is made again. seed: drawn."""

    possible = False
    running = False
    seed: Tensor | None = None


current = _Current()


def repeated(function: Callable) -> Callable:
    """A function that is called again if it fails while `current.possible`."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        outer, current.possible, current.seed = current.possible, False, None
        try:
            return function(*args, **kwargs)
        except Exception:
            if not current.possible:
                raise
        finally:
            current.possible = outer
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
