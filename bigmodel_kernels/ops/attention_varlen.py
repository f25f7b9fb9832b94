"""Shapes and gradients of attention_varlen."""

from functools import partial

import torch
from torch import Tensor

from .. import reference
from .attention import check_slopes, empty_mask_gradient
from .gradients import attach, differentiable_again, needed

# Positions of the inputs in the schema, of which lengths, slopes and seed have no gradient.
QUERY, KEY, VALUE, _, _, MASK, SLOPES, SINKS, _ = range(9)
INPUTS = 9
DIFFERENTIABLE = (QUERY, KEY, VALUE, MASK, SINKS)


def register(namespace: str) -> None:
    """Attaches the fakes and the gradient to the ops of a namespace that holds the schemas of library.cpp."""
    torch.library.register_fake(f"{namespace}::attention_varlen", _fake)
    torch.library.register_fake(f"{namespace}::attention_varlen_backward", _fake_backward)
    attach(namespace, "attention_varlen", _backward, _setup_context)


def _empty_in_order_of(x: Tensor, features: int) -> Tensor:
    """A new [tokens, heads, features] laid out as x is: python/src/attention_varlen.cpp has the rule."""
    tokens, heads, _ = x.shape
    if heads > 1 and tokens > 1 and x.stride(1) > x.stride(0):
        return x.new_empty(heads, tokens, features).transpose(0, 1)
    return x.new_empty(tokens, heads, features)


def _fake(query, key, value, *others, **options):
    output = _empty_in_order_of(query, value.shape[2])
    return output, query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)


def _fake_backward(
    grad_output,
    grad_lse,
    query,
    key,
    value,
    output,
    lse,
    cu_seqlens_q,
    cu_seqlens_k,
    mask=None,
    alibi_slopes=None,
    sinks=None,
    dropout_seed=None,
    *,
    output_mask=(True, True, True, False, False),
    **options,
):
    want_query, want_key, want_value, want_mask, want_sinks = output_mask
    return (
        _empty_in_order_of(query, query.shape[2]) if want_query else query.new_empty(0),
        _empty_in_order_of(key, key.shape[2]) if want_key else query.new_empty(0),
        _empty_in_order_of(value, value.shape[2]) if want_value else query.new_empty(0),
        empty_mask_gradient(query, mask, want_mask),
        sinks.new_empty(sinks.shape) if want_sinks and sinks is not None else query.new_empty(0),
    )


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    check_slopes("attention_varlen", inputs[SLOPES])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output)
    ctx.options = keyword_only_inputs


def _backward(ops, ctx, grad_output, grad_lse=None):
    *inputs, output, lse = ctx.saved_tensors
    needs = needed(ctx, INPUTS)
    wanted = [needs[index] for index in DIFFERENTIABLE]
    grads = [None] * INPUTS
    if grad_output is None and grad_lse is None:
        return tuple(grads)
    if torch.is_grad_enabled():
        function = partial(reference.attention_varlen, **ctx.options)
        return tuple(differentiable_again(function, inputs, needs, (grad_output, grad_lse)))
    found = ops.attention_varlen_backward(
        grad_output,
        grad_lse,
        *inputs[: VALUE + 1],
        output,
        lse,
        *inputs[VALUE + 1 :],
        **ctx.options,
        output_mask=wanted,
    )
    for index, want, grad in zip(DIFFERENTIABLE, wanted, found, strict=True):
        if want and not (index == VALUE and grad_output is None):  # the lse does not depend on value
            grads[index] = grad
    return tuple(grads)
