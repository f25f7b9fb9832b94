"""Plain calls answered without Python between the call and the op, for small tensors: python/src/shortcut.cpp."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import direct
from .repeats import current


@dataclass(frozen=True)
class Option:
    """A parameter that is no tensor: the values that a plain call may give for it, each with what the op gets for it;
    and whether any finite float is one of them, given to the op as it is."""

    name: str
    accepted: Sequence[tuple[object, object]] = ((None, None),)
    number: bool = False


def answers(
    op: str,
    tensors: int,
    options: Sequence[Option],
    constants: dict,
    forced: object,
    op_tensors: int | None = None,
    recorded: Callable | None = None,
    first: bool = False,
) -> Callable:
    """What a documented function asks first, with all its arguments by position, `tensors` of them and then `options`:
    the op's answer to a plain call (plain CPU tensors, or None where the op takes that, `options` within what they
    accept, nothing watching, no backend forced); NotImplemented for any other, also for one that the op refuses. Not
    to be asked where torch.compile traces, which cannot look into it.

    Args: `op`, a function of `direct`, refuses by an error or by None; `constants` are what its keywords are, in its
        order, unless an option of the same name says; `op_tensors`: so many tensors it takes, those after `tensors`
        None (None: as many); `forced.name` is the backend that a user forces, or None; `recorded(*tensors, options)` is
        the op where a gradient is needed, which is not answered without it; `first`: only the first of the op's
        outputs is wanted.
    """
    if direct.OPS is None or not hasattr(direct.OPS, "shortcut"):
        return lambda *arguments: NotImplemented
    return direct.OPS.shortcut(
        getattr(direct.OPS, op),
        recorded,
        forced,
        current,
        tensors,
        tensors if op_tensors is None else op_tensors,
        tuple((option.name, tuple(option.accepted), option.number) for option in options),
        tuple(constants),
        tuple(constants.values()),
        first,
    )
