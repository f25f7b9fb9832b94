"""The CPU kernels past torch's dispatcher, which takes longer to convert the arguments of a call than a small kernel
takes to run (bench/NOTES.md has the figures)."""

from torch._C import _are_functorch_transforms_active, _is_tracing, _len_torch_dispatch_stack
from torch.autograd import _profiler_enabled, forward_ad
from torch.compiler import is_compiling

from .. import _C

# The ops of torch.ops.bigmodel by the same names, for plain CPU tensors; all arguments of the schema must be given.
# None where this torch lacks what converts the tensors.
NAMESPACE = "bigmodel"
OPS = _C.direct if hasattr(_C.direct, "attention") else None


def possible() -> bool:
    """Whether nothing needs to see the calls of ops: no tracing, no mode, no transform, no profiler. Tensors that are
    not plain (subclasses, lazy negation) the ops refuse themselves, by a TypeError."""
    return (
        OPS is not None
        and not is_compiling()
        and _len_torch_dispatch_stack() == 0
        and not _are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not _is_tracing()
        and not _profiler_enabled()
    )
