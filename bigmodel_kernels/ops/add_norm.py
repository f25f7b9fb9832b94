"""Shapes and gradients of add_norm."""

import torch

from .. import reference
from . import direct
from .gradients import attach, differentiable_again, needed, present
from .repeats import current

INPUT, RESIDUAL, WEIGHT, BIAS = range(4)


def register(namespace: str) -> None:
    """Attaches the fakes and the gradient to the ops of a namespace that holds the schemas of library.cpp."""
    torch.library.register_fake(f"{namespace}::add_norm", _fake)
    torch.library.register_fake(f"{namespace}::add_norm_backward", _fake_backward)
    attach(namespace, "add_norm", _backward, _setup_context)


def _fake(input, residual=None, weight=None, bias=None, *, kind="layer", **options):
    rows = input.shape[:-1]
    return (
        input.new_empty(0 if residual is None else input.shape),
        input.new_empty(input.shape),
        input.new_empty(0) if kind == "rms" else input.new_empty(rows, dtype=torch.float32),
        input.new_empty(rows, dtype=torch.float32),
    )


def _fake_backward(grad_normed, grad_sum, sum, weight, mean, rstd, *, output_mask=(True, True, True), **options):
    want_input, want_weight, want_bias = output_mask
    parameter = sum if weight is None else weight
    return (
        sum.new_empty(sum.shape if want_input else 0),
        weight.new_empty(weight.shape) if want_weight and weight is not None else sum.new_empty(0),
        parameter.new_empty(sum.shape[-1:]) if want_bias else sum.new_empty(0),
    )


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    input, residual, weight, bias = inputs
    total, _, mean, rstd = output
    ctx.set_materialize_grads(False)
    if residual is None:
        ctx.mark_non_differentiable(total, mean, rstd)
        total = input
    else:
        ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(total, weight, bias, mean, rstd)
    ctx.options = keyword_only_inputs


def _backward(ops, ctx, grad_sum, grad_normed, *_):
    total, weight, bias, mean, rstd = ctx.saved_tensors
    want_input, want_residual, want_weight, want_bias = needed(ctx, BIAS + 1)
    wanted = [want_input or want_residual, want_weight, want_bias]
    if grad_normed is None:
        grad_input, grad_weight, grad_bias = grad_sum, None, None
    elif torch.is_grad_enabled():
        # sum is the saved output, so that its own graph leads on to input and residual.
        grad_input, grad_weight, grad_bias = differentiable_again(
            lambda x, weight, bias: reference.add_norm(x, None, weight, bias, **ctx.options)[1:2],
            (total, weight, bias),
            wanted,
            (grad_normed,),
        )
        if grad_sum is not None and grad_input is not None:
            grad_input = grad_input + grad_sum
    else:
        grad_input, grad_weight, grad_bias = ops.add_norm_backward(
            grad_normed, grad_sum, total, weight, mean, rstd, kind=ctx.options["kind"], output_mask=wanted
        )
    return (
        present(grad_input, want_input),
        present(grad_input, want_residual),
        present(grad_weight, want_weight),
        present(grad_bias, want_bias),
    )


class AddNorm(torch.autograd.Function):
    """add_norm past the dispatcher: the normed rows, after the sum where there is a residual. The Function that
    `attach` makes does the same for every call; this one spares small calls Python's time."""

    @staticmethod
    def forward(ctx, input, residual, weight, bias, options):
        total, normed, mean, rstd = direct.OPS.add_norm(input, residual, weight, bias, **options)
        current.straight = False  # accepted
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input if residual is None else total, weight, bias, mean, rstd)
        ctx.options = options
        return normed if residual is None else (total, normed)

    @staticmethod
    def backward(ctx, *grad_outputs):
        grad_normed = grad_outputs[-1]
        grad_sum = grad_outputs[0] if len(grad_outputs) > 1 else None
        if grad_normed is not None and direct.possible() and not torch.is_grad_enabled():
            total, weight, _, mean, rstd = ctx.saved_tensors
            want_input, want_residual, want_weight, want_bias, _ = ctx.needs_input_grad
            wanted = (want_input or want_residual, want_weight, want_bias)
            try:
                grad_input, grad_weight, grad_bias = direct.OPS.add_norm_backward(
                    grad_normed, grad_sum, total, weight, mean, rstd, kind=ctx.options["kind"], output_mask=wanted
                )
            except TypeError:  # refused: a gradient is not plain
                pass
            else:
                return (
                    grad_input if want_input else None,
                    grad_input if want_residual else None,
                    grad_weight if want_weight else None,
                    grad_bias if want_bias else None,
                    None,
                )
        return *_backward(torch.ops.bigmodel, ctx, grad_sum, grad_normed), None


# What Function.apply comes to without transforms, which direct calls exclude.
plain = super(torch.autograd.Function, AddNorm).apply
