"""The CPU kernels past torch's dispatcher, which takes longer to convert the arguments of a call than a small kernel
takes to run (bench/NOTES.md has the figures)."""

from collections.abc import Callable

import torch

from .. import _C

# The ops of torch.ops.bigmodel by the same names, for plain CPU tensors; all arguments of the schema must be given.
# None where this torch lacks what converts the tensors, or what tells that nothing watches.
NAMESPACE = "bigmodel"
OPS = _C.direct if hasattr(_C.direct, "attention") else None
_unwatched = getattr(_C.direct, "unwatched", lambda: False)

# Whether a call, of which x is the first tensor, may go directly to the kernels as it is: x is a plain CPU tensor of
# their dtypes, there is no autocast, and nothing watches.
takes = getattr(_C.direct, "takes", lambda x: False)


def possible() -> bool:
    """Whether nothing needs to see the calls of ops: no tracing, no mode, no transform, no profiler. Tensors that are
    not plain (subclasses, lazy negation) the ops refuse themselves, by a TypeError."""
    return not torch.compiler.is_compiling() and _unwatched()


class First:
    """The ops of a namespace, each called directly where that is possible, else through the dispatcher."""

    def __init__(self, dispatched):
        self._dispatched = dispatched

    def __getattr__(self, name: str) -> Callable:
        op = getattr(OPS, name)

        def call(*tensors, **options):
            try:
                return op(*tensors, **options)
            except TypeError:  # refused: a tensor is not plain
                return getattr(self._dispatched, name)(*tensors, **options)

        setattr(self, name, call)  # found without this function from now on
        return call
