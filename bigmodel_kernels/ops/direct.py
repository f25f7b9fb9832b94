"""The CPU kernels past torch's dispatcher, which takes longer to convert the arguments of a call than a small kernel
takes to run (bench/NOTES.md has the figures)."""

from collections.abc import Callable

import torch
from torch.autograd import forward_ad

from .. import _C

# What would see an op that goes through the dispatcher, and None where this torch does not tell.
_WATCHERS = (
    (torch._C, "_len_torch_dispatch_stack"),
    (torch._C, "_len_torch_function_stack"),
    (torch._ops, "_len_torch_dispatch_stack_pre_dispatch"),
    (torch._C, "_are_functorch_transforms_active"),
    (torch._C, "_is_tracing"),
    (torch.autograd, "_profiler_enabled"),
)
_watchers = tuple(getattr(module, name, None) for module, name in _WATCHERS)

# The ops of torch.ops.bigmodel by the same names, for plain CPU tensors; all arguments of the schema must be given.
# None where this torch lacks what converts the tensors, or what tells that nothing watches.
NAMESPACE = "bigmodel"
OPS = _C.direct if hasattr(_C.direct, "attention") and None not in _watchers else None
if OPS is not None:
    _dispatch_modes, _function_modes, _pre_dispatch_modes, _transforms, _tracing, _profiling = _watchers


def possible() -> bool:
    """Whether nothing needs to see the calls of ops: no tracing, no mode, no transform, no profiler. Tensors that are
    not plain (subclasses, lazy negation) the ops refuse themselves, by a TypeError."""
    return (
        OPS is not None
        and not torch.compiler.is_compiling()
        and not _dispatch_modes()
        and not _function_modes()
        and not _pre_dispatch_modes()
        and not _transforms()
        and forward_ad._current_level < 0
        and not _tracing()
        and not _profiling()
    )


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
