"""What the autograd formulas of all ops share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# op -> the autograd.Function that calls it; see `attach`.
_functions: dict[Callable, type[torch.autograd.Function]] = {}


def attach(namespace: str, name: str, backward: Callable, setup_context: Callable) -> None:
    """Gives an op its gradient twice, from one formula: to the dispatcher, for graphs that torch.compile and
    torch.export trace, and as an autograd.Function for `call`. The Function is the shorter way through
    Python, which small models feel (bench/NOTES.md has the figures)."""
    torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=setup_context)
    op = getattr(getattr(torch.ops, namespace), name)

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors_and_options):
            *tensors, options = tensors_and_options
            with torch._C._AutoDispatchBelowAutograd():
                output = op(*tensors, **options)
            setup_context(ctx, tensors, options, output)
            return output

        @staticmethod
        def backward(ctx, *grad_outputs):
            return *backward(ctx, *grad_outputs), None

    _functions[op] = Differentiable


def call(op: Callable, tensors: Sequence[Tensor | None], options: dict):
    """op(*tensors, **options), recorded for the backward pass. All of the op's tensors are given; an option that is
    not has its default."""
    function = _functions[op]
    if torch._C._are_functorch_transforms_active():
        return function.apply(*tensors, options)  # says what it cannot do
    # What Function.apply comes to without transforms: it looks for them at length.
    return super(torch.autograd.Function, function).apply(*tensors, options)


def given(options: dict, *names: str) -> dict:
    """Those of the named options that a call gave; the others have their defaults, backward as forward."""
    return {name: options[name] for name in names if name in options}


def needed(ctx, *positions: int) -> list[bool]:
    """Whether the inputs at these positions of the op's schema need a gradient.

    The dispatcher leaves out trailing arguments that have their default value, and so does ctx.
    """
    flags = ctx.needs_input_grad
    return [position < len(flags) and flags[position] for position in positions]


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
