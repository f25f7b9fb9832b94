"""How a function's call reaches an op: past the dispatcher, through autograd, or through the dispatcher."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import backends, reference
from ..ops import direct, gradients, packed_weights, repeats
from .autocast import autocast_dtype


def may_go_straight(x: Tensor) -> bool:
    """Whether a call, of which x is the first tensor, needs no cast, no choice of a backend, and no check of tensors
    that kernels do not make (and none that they have refused)."""
    return (
        not torch.compiler.is_compiling()
        and not repeats.current.running
        and backends.forced.name is None
        and direct.takes(x)
    )


def straight_to_kernels(x: Tensor, backend: str | None) -> bool:
    """Whether such a call goes straight to the kernels, and is made again if they refuse it."""
    if torch.compiler.is_compiling():
        return False
    repeats.current.straight = straight = backend is None and may_go_straight(x)
    return straight


def call(ops, op: Callable, inputs: Sequence[Tensor | None], options: dict, returned: int = 1):
    """Calls an op, of whose outputs the first `returned` are wanted, though more may come back. What needs no gradient
    skips the autograd layer, which costs a small call more than its kernel."""
    if ops is direct.OPS:
        if needs_gradient(inputs):
            return gradients.call(op, inputs, options, returned)
        outputs = op(*inputs, **options)
        repeats.current.straight = False  # accepted
        return outputs
    if ops is reference:
        if autocast_dtype(inputs[0]) is None:
            return op(*inputs, **options)
        with torch.autocast(inputs[0].device.type, enabled=False):  # inputs are cast already
            return op(*inputs, **options)
    return _call_dispatched(op, inputs, options, returned)


def _call_dispatched(op: Callable, inputs: Sequence[Tensor | None], options: dict, returned: int):
    if torch.compiler.is_compiling():
        return op(*inputs, **options)
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in _given(inputs)):
        raise RuntimeError(f"[{op.__name__}] kernels have no forward-mode derivative; expected backend='reference'")
    # The dispatcher would choose another device's function, or the fake, for all of them.
    if any(tensor.is_cpu != inputs[0].is_cpu for tensor in _given(inputs)):
        raise ValueError(f"[{op.__name__}] the tensors are on several devices; expected one device")
    if torch._C._is_tracing():  # one graph for all grad modes: torch compares it with that of a trace without gradients
        return op(*inputs, **options)
    if needs_gradient(inputs):
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                f"[{op.__name__}] kernels have no gradient inside torch.func's transforms; expected backend='reference'"
            )
        return gradients.call(op, inputs, options, returned)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*inputs, **options)


def _given(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def needs_gradient(tensors: Sequence[Tensor | None]) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def saves_for_gradient(tensors: Sequence[Tensor | None], straight: bool) -> bool:
    """Whether an op also returns what its backward pass needs: always in what torch.jit.trace makes, one graph for all
    grad modes. straight: the call goes straight to the kernels, and is not traced."""
    if straight or torch.compiler.is_compiling():
        return needs_gradient(tensors)
    return torch._C._is_tracing() or needs_gradient(tensors)


def packed_weights_of(ops, x: Tensor, *weights: Tensor | None) -> Sequence[Tensor | None]:
    """The weights in the kernels' layout where x's rows make that worth keeping; see ops/packed_weights.py."""
    on_cpu = ops is direct.OPS or ops is backends.CPU_OPS
    if not on_cpu or torch.compiler.is_compiling():
        return (None,) * len(weights)

    def packed(w: Tensor | None) -> Tensor | None:
        if w is None:
            return None
        few = x.numel() <= packed_weights.few_rows(x.dtype, w.numel()) * x.shape[-1]
        as_it_lies = (few and w.dim() == 2 and w.stride(1) == 1) or needs_gradient((w,))
        return None if as_it_lies else packed_weights.lookup(w)

    return [packed(w) for w in weights]
