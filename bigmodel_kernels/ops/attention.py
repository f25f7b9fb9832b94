"""Shapes and gradients of attention."""

from functools import partial

import torch
from torch import Tensor

from .. import reference
from . import direct
from .gradients import attach, differentiable_again, needed
from .repeats import current

# Positions of the differentiable inputs in the schema.
SLOPES, SINKS = 4, 5


def register(namespace: str) -> None:
    """Attaches the fakes and the gradient to the ops of a namespace that holds the schemas of library.cpp."""
    torch.library.register_fake(f"{namespace}::attention", _fake)
    torch.library.register_fake(f"{namespace}::attention_backward", _fake_backward)
    attach(namespace, "attention", _backward, _setup_context)


def empty_in_order_of(x: Tensor, features: int) -> Tensor:
    """A new [batch, heads, length, features] laid out as x is: python/src/attention.cpp has the rule."""
    batch, heads, length, _ = x.shape
    if heads > 1 and length > 1 and x.stride(1) < x.stride(2):
        return x.new_empty(batch, length, heads, features).transpose(1, 2)
    return x.new_empty(batch, heads, length, features)


def check_slopes(op: str, alibi_slopes: Tensor | None) -> None:
    if alibi_slopes is not None and alibi_slopes.requires_grad:
        raise ValueError(f"[{op}] alibi_slopes requires a gradient, which is not implemented; pass a detached tensor")


def empty_mask_gradient(query: Tensor, mask: Tensor | None, want: bool) -> Tensor:
    exists = want and mask is not None and mask.dtype != torch.bool
    return mask.new_empty(mask.shape) if exists else query.new_empty(0)


def _fake(query, key, value, mask=None, alibi_slopes=None, sinks=None, dropout_seed=None, **options):
    output = empty_in_order_of(query, value.shape[3])
    return output, query.new_empty(query.shape[:3], dtype=torch.float32)


def _fake_backward(
    grad_output,
    grad_lse,
    query,
    key,
    value,
    output,
    lse,
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
        empty_in_order_of(query, query.shape[3]) if want_query else query.new_empty(0),
        empty_in_order_of(key, key.shape[3]) if want_key else query.new_empty(0),
        empty_in_order_of(value, value.shape[3]) if want_value else query.new_empty(0),
        empty_mask_gradient(query, mask, want_mask),
        sinks.new_empty(sinks.shape) if want_sinks and sinks is not None else query.new_empty(0),
    )


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    if inputs[SLOPES] is not None:
        check_slopes("attention", inputs[SLOPES])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output)
    ctx.options = keyword_only_inputs


def _backward(ops, ctx, grad_output, grad_lse=None):
    wanted = needed(ctx, SINKS + 1)
    return _gradients(ops, ctx.saved_tensors, ctx.options, wanted, grad_output, grad_lse)


def _gradients(ops, saved, options, wanted, grad_output, grad_lse):
    query, key, value, mask, alibi_slopes, sinks, dropout_seed, output, lse = saved
    want_query, want_key, want_value, want_mask, want_slopes, want_sinks = wanted
    want_value = want_value and grad_output is not None  # the lse does not depend on value
    if grad_output is None and grad_lse is None:
        return None, None, None, None, None, None, None
    if torch.is_grad_enabled():
        function = partial(reference.attention, **options)
        inputs = (query, key, value, mask, alibi_slopes, sinks, dropout_seed)
        wanted = (want_query, want_key, want_value, want_mask, want_slopes, want_sinks, False)
        return tuple(differentiable_again(function, inputs, wanted, (grad_output, grad_lse)))
    grad_query, grad_key, grad_value, grad_mask, grad_sinks = ops.attention_backward(
        grad_output,
        grad_lse,
        query,
        key,
        value,
        output,
        lse,
        mask,
        alibi_slopes,
        sinks,
        dropout_seed,
        output_mask=(want_query, want_key, want_value, want_mask, want_sinks),
        **options,
    )
    return (
        grad_query if want_query else None,
        grad_key if want_key else None,
        grad_value if want_value else None,
        grad_mask if want_mask else None,
        None,
        grad_sinks if want_sinks else None,
        None,
    )


class Attention(torch.autograd.Function):
    """Attention of query, key and value alone past the dispatcher. The Function that `attach` makes does the same for
    every call; this one spares small calls what the other tensors cost in Python."""

    @staticmethod
    def forward(ctx, query, key, value, options):
        output, lse = direct.OPS.attention(query, key, value, None, None, None, None, **options)
        current.straight = False  # accepted
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.options = options
        return output

    @staticmethod
    def backward(ctx, grad_output):
        query, key, value, output, lse = ctx.saved_tensors
        wanted, options = ctx.needs_input_grad[:3], ctx.options
        if direct.possible() and not torch.is_grad_enabled():
            tensors = (grad_output, None, query, key, value, output, lse, None, None, None, None)
            try:
                grads = direct.OPS.attention_backward(*tensors, **options, output_mask=(*wanted, False, False))
            except TypeError:  # refused: the gradient is not plain
                pass
            else:
                if wanted == (True, True, True):  # the usual case, spelled out for its speed
                    return grads[0], grads[1], grads[2], None
                return *(grad if want else None for grad, want in zip(grads, wanted, strict=False)), None
        saved = (query, key, value, None, None, None, None, output, lse)
        grads = _gradients(torch.ops.bigmodel, saved, options, (*wanted, False, False, False), grad_output, None)
        return *grads[:3], None


# What Function.apply comes to without transforms, which direct calls exclude.
plain = super(torch.autograd.Function, Attention).apply
