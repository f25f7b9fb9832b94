"""Shapes and gradients of linear."""

from functools import partial

import torch

from .. import reference
from .gradients import attach, differentiable_again, needed, present

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
