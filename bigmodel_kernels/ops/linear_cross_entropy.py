"""Shapes and gradients of linear_cross_entropy."""

import torch

from .. import reference
from .gradients import attach, differentiable_again, needed, present

HIDDEN, WEIGHT, TARGET, BIAS = range(4)


def register(namespace: str) -> None:
    """Attaches the fakes and the gradient to the ops of a namespace that holds the schemas of library.cpp."""
    torch.library.register_fake(f"{namespace}::linear_cross_entropy", _fake)
    torch.library.register_fake(f"{namespace}::linear_cross_entropy_backward", _fake_backward)
    attach(namespace, "linear_cross_entropy", _backward, _setup_context)


def _fake(hidden, weight, target, bias=None, **options):
    rows = hidden.shape[:-1]
    return hidden.new_empty(rows, dtype=torch.float32), hidden.new_empty(rows, dtype=torch.float32)


def _fake_backward(grad_loss, hidden, weight, target, lse, bias=None, *, output_mask=(True, True, True), **options):
    want_hidden, want_weight, want_bias = output_mask
    return (
        hidden.new_empty(hidden.shape if want_hidden else 0),
        hidden.new_empty(weight.shape if want_weight else 0),
        hidden.new_empty(bias.shape if want_bias and bias is not None else 0),
    )


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    hidden, weight, target, bias = inputs
    _, lse = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(hidden, weight, target, bias, lse)
    ctx.options = keyword_only_inputs


def _backward(ops, ctx, grad_loss, *_):
    hidden, weight, target, bias, lse = ctx.saved_tensors
    needs = needed(ctx, BIAS + 1)
    wanted = [needs[HIDDEN], needs[WEIGHT], needs[BIAS]]
    if grad_loss is None or not any(wanted):
        return None, None, None, None
    if torch.is_grad_enabled():

        def loss(hidden, weight, bias):
            return reference.linear_cross_entropy(hidden, weight, target, bias, **ctx.options)[:1]

        grads = differentiable_again(loss, (hidden, weight, bias), wanted, (grad_loss,))
    else:
        grads = ops.linear_cross_entropy_backward(
            grad_loss, hidden, weight, target, lse, bias, **ctx.options, output_mask=wanted
        )
    grad_hidden, grad_weight, grad_bias = (present(grad, want) for grad, want in zip(grads, wanted, strict=True))
    return grad_hidden, grad_weight, None, grad_bias
