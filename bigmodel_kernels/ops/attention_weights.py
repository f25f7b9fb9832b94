"""Shapes and gradients of attention_weights."""

import torch

from .. import reference
from .attention import check_slopes, empty_in_order_of, empty_mask_gradient
from .gradients import attach, differentiable_again, needed, present

QUERY, KEY, LSE, MASK, SLOPES = range(5)


def register(namespace: str) -> None:
    """Attaches the fakes and the gradient to the ops of a namespace that holds the schemas of library.cpp."""
    torch.library.register_fake(f"{namespace}::attention_weights", _fake)
    torch.library.register_fake(f"{namespace}::attention_weights_backward", _fake_backward)
    attach(namespace, "attention_weights", _backward, _setup_context)


def _fake(query, key, lse, mask=None, alibi_slopes=None, dropout_seed=None, *, average_heads=False, **options):
    batch, heads, q_len, _ = query.shape
    return query.new_empty(batch, 1 if average_heads else heads, q_len, key.shape[2])


def _fake_backward(
    grad_weights,
    query,
    key,
    lse,
    mask=None,
    alibi_slopes=None,
    dropout_seed=None,
    *,
    output_mask=(True, True, True, False),
    **options,
):
    want_query, want_key, want_lse, want_mask = output_mask
    return (
        empty_in_order_of(query, query.shape[3]) if want_query else query.new_empty(0),
        empty_in_order_of(key, key.shape[3]) if want_key else query.new_empty(0),
        lse.new_empty(lse.shape) if want_lse else query.new_empty(0),
        empty_mask_gradient(query, mask, want_mask),
    )


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    check_slopes("attention_weights", inputs[SLOPES])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)
    ctx.options = keyword_only_inputs


def _backward(ops, ctx, grad_weights):
    inputs = ctx.saved_tensors
    wanted = needed(ctx, MASK + 1)
    if grad_weights is None:
        return (None,) * len(inputs)
    if torch.is_grad_enabled():

        def function(*tensors):
            return (reference.attention_weights(*tensors, **ctx.options),)

        return tuple(differentiable_again(function, inputs, [*wanted, False, False], (grad_weights,)))
    grads = ops.attention_weights_backward(grad_weights, *inputs, output_mask=wanted, **ctx.options)
    return *(present(grad, want) for grad, want in zip(grads, wanted, strict=True)), None, None
