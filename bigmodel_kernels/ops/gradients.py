"""What the autograd formulas of all ops share."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from . import direct
from .repeats import current

# op -> what calls it through an autograd.Function; see `attach`.
_recorded: dict[Callable, Callable] = {}


def attach(namespace: str, name: str, backward: Callable, setup_context: Callable) -> None:
    """Gives an op its gradient twice, from one formula: to the dispatcher, for graphs that torch.compile and
    torch.export trace, and as an autograd.Function for `call`. The Function is the shorter way through
    Python, which small models feel (bench/NOTES.md has the figures).

    Args: `backward(ops, ctx, *grad_outputs)` calls the backward op in the namespace `ops`; `setup_context` is torch's.
    """
    dispatched = getattr(torch.ops, namespace)
    shortcut = direct.First(dispatched) if direct.OPS is not None and namespace == direct.NAMESPACE else None
    direct_op = None if shortcut is None else getattr(direct.OPS, name)
    torch.library.register_autograd(f"{namespace}::{name}", partial(backward, dispatched), setup_context=setup_context)

    def run_forward(ctx, *arguments):
        options, op, returned = arguments[-3:]
        tensors = arguments[:-3]
        if op is direct_op:
            output = op(*tensors, **options)
            current.straight = False  # accepted
        else:
            with torch._C._AutoDispatchBelowAutograd():
                output = op(*tensors, **options)
        setup_context(ctx, tensors, options, output)
        return output[:returned] if isinstance(output, tuple) else output

    def run_backward(ctx, *grad_outputs):
        ops = shortcut if shortcut is not None and direct.possible() else dispatched
        return *backward(ops, ctx, *grad_outputs), None, None, None

    # Named as it is made: autograd names its nodes then.
    Differentiable = type(
        name.title().replace("_", ""),
        (torch.autograd.Function,),
        {"forward": staticmethod(run_forward), "backward": staticmethod(run_backward)},
    )
    _recorded[getattr(dispatched, name)] = Differentiable.apply
    if direct_op is not None:
        # What Function.apply comes to without transforms, which direct calls exclude: it looks for them at length.
        _recorded[direct_op] = super(torch.autograd.Function, Differentiable).apply


def call(op: Callable, tensors: Sequence[Tensor | None], options: dict, returned: int):
    """op(*tensors, **options), recorded for the backward pass; all of the op's arguments are given. Of several outputs
    only the first `returned` come back: recording each one takes time."""
    return _recorded[op](*tensors, options, op, returned)


def needed(ctx, count: int) -> tuple[bool, ...]:
    """Whether the first inputs of the op's schema need a gradient.

    The dispatcher leaves out trailing arguments that have their default value, and so does ctx.
    """
    flags = ctx.needs_input_grad[:count]
    return flags if len(flags) == count else (*flags, *(False,) * (count - len(flags)))


def differentiable_again(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grad_outputs: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of a reference function that carry a graph, for a backward pass run with create_graph=True."""
    # Aliases, so that an input computed from another one gets its own gradient only.
    aliases = [x.view_as(x) if want else x for x, want in zip(inputs, wanted, strict=True)]
    outputs = function(*aliases)
    pairs = [pair for pair in zip(outputs, grad_outputs, strict=False) if pair[1] is not None]
    grads = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            [alias for alias, want in zip(aliases, wanted, strict=True) if want],
            [grad for _, grad in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(grads) if want else None for want in wanted]


def present(grad: Tensor, want: bool) -> Tensor | None:
    """An op's gradient output, or None where it was not asked for and came back with zero elements."""
    return grad if want else None
