"""Shapes and gradients of linear."""

from functools import partial

import torch

from .. import reference
from . import direct
from .gradients import attach, differentiable_again, needed, present
from .repeats import current

INPUT, WEIGHT, BIAS, RESIDUAL = range(4)


def register(namespace: str) -> None:
    """Attaches the fakes and the gradient to the ops of a namespace that holds the schemas of library.cpp."""
    torch.library.register_fake(f"{namespace}::linear", _fake)
    torch.library.register_fake(f"{namespace}::linear_backward", _fake_backward)
    torch.library.register_fake(f"{namespace}::linear_pack", _fake_pack)
    attach(namespace, "linear", _backward, _setup_context)


def _fake(input, weight, bias=None, residual=None, packed_weight=None, *, save_preactivation=False, **options):
    output = input.new_empty(*input.shape[:-1], weight.shape[0])
    return output, output.new_empty(output.shape if save_preactivation else 0)


def _fake_backward(
    grad_output, input, weight, bias=None, preactivation=None, *, output_mask=(True, True, True), **options
):
    want_input, want_weight, want_bias = output_mask
    return (
        input.new_empty(input.shape if want_input else 0),
        input.new_empty(weight.shape if want_weight else 0),
        input.new_empty(bias.shape if want_bias and bias is not None else 0),
    )


def _fake_pack(weight):
    # The kernels of the CPU target in use decide how many bytes.
    return weight.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    input, weight, bias, _, _ = inputs
    _, preactivation = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(preactivation)
    ctx.save_for_backward(input, weight, bias, preactivation)
    ctx.activation = keyword_only_inputs["activation"]


def _backward(ops, ctx, grad_output, *_):
    input, weight, bias, preactivation = ctx.saved_tensors
    *wanted, want_residual = needed(ctx, RESIDUAL + 1)
    if grad_output is None or not any(wanted):
        return None, None, None, grad_output if want_residual else None, None
    if torch.is_grad_enabled():
        function = partial(reference.linear, activation=ctx.activation)
        grads = differentiable_again(function, (input, weight, bias), wanted, (grad_output,))
    else:
        grads = ops.linear_backward(
            grad_output, input, weight, bias, preactivation, activation=ctx.activation, output_mask=wanted
        )
    grads = (present(grad, want) for grad, want in zip(grads, wanted, strict=True))
    return *grads, grad_output if want_residual else None, None


class Linear(torch.autograd.Function):
    """Linear without a packed weight past the dispatcher. The Function that `attach` makes does the same for every
    call; this one spares small calls Python's time."""

    @staticmethod
    def forward(ctx, input, weight, bias, residual, options):
        activation, preactivation = options["activation"], None
        output = None
        if activation == "none":
            output = direct.OPS.small_linear(input, weight, bias, residual, activation=activation)
        if output is None:
            if not weight.requires_grad:
                raise TypeError("a packed weight might be wanted")  # which the documented function looks for
            save = activation != "none" and any(ctx.needs_input_grad[:RESIDUAL])
            output, preactivation = direct.OPS.linear(
                *(input, weight, bias, residual, None), activation=activation, save_preactivation=save
            )
        current.straight = False  # accepted
        ctx.save_for_backward(input, weight, bias, preactivation)
        ctx.activation = activation
        return output

    @staticmethod
    def backward(ctx, grad_output):
        if direct.possible() and not torch.is_grad_enabled():
            *wanted, want_residual, _ = ctx.needs_input_grad
            try:
                grads = direct.OPS.linear_backward(
                    grad_output, *ctx.saved_tensors, activation=ctx.activation, output_mask=wanted
                )
            except TypeError:  # refused: the gradient is not plain
                pass
            else:
                grad_residual = grad_output if want_residual else None
                if all(wanted):
                    return *grads, grad_residual, None
                return *(grad if want else None for grad, want in zip(grads, wanted, strict=True)), grad_residual, None
        return _backward(torch.ops.bigmodel, ctx, grad_output)


# What Function.apply comes to without transforms, which direct calls exclude.
plain = super(torch.autograd.Function, Linear).apply
