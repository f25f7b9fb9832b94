"""Plain calls answered without Python between the call and the op, for small tensors: python/src/shortcut.cpp."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from . import direct
from .repeats import current


@dataclass(frozen=True)
class Option:
    """A parameter that is no tensor: the values that a plain call may give for it, the default first, each with what
    the op gets for it; and whether any finite float is one of them, given to the op as it is."""

    name: str
    accepted: Sequence[tuple[object, object]] = ((None, None),)
    number: bool = False


def answered_first(
    op: str,
    tensors: Sequence[str],
    options: Sequence[Option],
    constants: dict,
    forced: object,
    positional: int | None = None,
    op_tensors: int | None = None,
    recorded: Callable | None = None,
) -> Callable:
    """A decorator of a documented function: a plain call (`tensors` plain CPU tensors, or None where the op takes that,
    `options` within what they accept, nothing watching, no backend forced) is answered by the op, and any other, also
    one that the op refuses, by the function.

    Args: `op`, a function of `direct`, refuses by an error or by None; `constants` are what its keywords are, in its
    order, unless a parameter of the same name says; `op_tensors`: so many tensors it takes, those after `tensors` None;
    so many `positional` arguments a caller may give (None, of both: as many as `tensors`); `recorded(*tensors,
    options)` is the op where a gradient is needed, which the function answers without it; `forced.name` the backend
    that a user forces, or None.
    """

    def decorate(function: Callable) -> Callable:
        if direct.OPS is None or not hasattr(direct.OPS, "shortcut"):
            return function
        answer = direct.OPS.shortcut(
            getattr(direct.OPS, op),
            recorded,
            forced,
            current,
            tuple(tensors),
            len(tensors) if positional is None else positional,
            len(tensors) if op_tensors is None else op_tensors,
            tuple((option.name, tuple(option.accepted), option.number) for option in options),
            tuple(constants),
            tuple(constants.values()),
        )

        @functools.wraps(function)
        def call(*args, **kwargs):
            if not torch.compiler.is_compiling():
                answered = answer(*args, **kwargs)
                if answered is not NotImplemented:
                    return answered
            return function(*args, **kwargs)

        return call

    return decorate
