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
    accepted: Sequence[tuple[object, object]]
    number: bool = False


def answered_first(
    op: str, recorded: Callable, tensors: Sequence[str], options: Sequence[Option], constants: dict, forced: object
) -> Callable:
    """A decorator of a documented function: a plain call (all `tensors` plain CPU tensors, `options` within what they
    accept, nothing watching, no backend forced) is answered by the op, and any other, also one that the op refuses, by
    the function.

    Args: `recorded(*tensors, options)` is the op where a gradient is needed; `constants` what the op's keywords are, in
    the schema's order, unless a parameter of the same name says; `forced.name` the backend that a user forces, or None.
    """

    def decorate(function: Callable) -> Callable:
        if direct.OPS is None or not hasattr(direct.OPS, "shortcut"):
            return function
        op_tensors = sum(not a.kwarg_only for a in getattr(torch.ops.bigmodel, op).default._schema.arguments)
        answer = direct.OPS.shortcut(
            getattr(direct.OPS, op),
            recorded,
            forced,
            current,
            tuple(tensors),
            op_tensors,
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
