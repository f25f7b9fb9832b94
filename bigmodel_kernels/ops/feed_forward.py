"""Shapes and gradients of feed_forward."""

from functools import partial

import torch

from .. import reference
from .gradients import attach, differentiable_again, needed, present

INPUT, W1, B1, W2, B2, W_GATE, B_GATE, RESIDUAL, PACKED_W1, PACKED_W2, PACKED_W_GATE, DROPOUT_SEED = range(12)


def register(namespace: str) -> None:
    """Attaches the fakes and the gradient to the ops of a namespace that holds the schemas of library.cpp."""
    torch.library.register_fake(f"{namespace}::feed_forward", _fake)
    torch.library.register_fake(f"{namespace}::feed_forward_backward", _fake_backward)
    attach(namespace, "feed_forward", _backward, _setup_context)


def _fake(input, w1, b1, w2, b2, w_gate=None, *others, gate="none", save_preactivation=False, **options):
    leading = input.shape[:-1]
    save_gate = save_preactivation and gate != "none"
    return (
        input.new_empty(*leading, w2.shape[0]),
        input.new_empty((*leading, w1.shape[0]) if save_preactivation else 0),
        input.new_empty((*leading, w_gate.shape[0]) if save_gate else 0),
    )


def _fake_backward(
    grad_output,
    input,
    w1,
    b1,
    w2,
    b2,
    w_gate=None,
    b_gate=None,
    preactivation=None,
    gate_preactivation=None,
    dropout_seed=None,
    *,
    output_mask=(True,) * 7,
    **options,
):
    of = (input, w1, b1, w2, b2, w_gate, b_gate)
    return tuple(
        input.new_empty(x.shape if want and x is not None else 0) for x, want in zip(of, output_mask, strict=True)
    )


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    _, preactivation, gate_preactivation = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(preactivation, gate_preactivation)
    ctx.save_for_backward(*inputs[:RESIDUAL], inputs[DROPOUT_SEED], preactivation, gate_preactivation)
    ctx.options = {name: keyword_only_inputs[name] for name in ("activation", "gate", "dropout_p")}


def _backward(ops, ctx, grad_output, *_):
    *inputs, dropout_seed, preactivation, gate_preactivation = ctx.saved_tensors
    *wanted, want_residual = needed(ctx, RESIDUAL + 1)
    if grad_output is None or not any(wanted):
        grads = [None] * len(inputs)
    elif torch.is_grad_enabled():
        function = partial(reference.feed_forward, dropout_seed=dropout_seed, **ctx.options)
        grads = differentiable_again(function, inputs, wanted, (grad_output,))
    else:
        grads = ops.feed_forward_backward(
            grad_output,
            *inputs,
            preactivation,
            gate_preactivation,
            dropout_seed,
            output_mask=wanted,
            **ctx.options,
        )
    grads = (present(grad, want) for grad, want in zip(grads, wanted, strict=True))
    return *grads, grad_output if want_residual else None, None, None, None, None
