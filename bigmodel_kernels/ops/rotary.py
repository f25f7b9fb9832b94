"""Shapes and gradients of rotary."""

import torch

from .. import reference
from .gradients import attach, needed

QUERY, KEY = range(2)


def register(namespace: str) -> None:
    """Attaches the fakes and the gradient to the ops of a namespace that holds the schemas of library.cpp."""
    torch.library.register_fake(f"{namespace}::rotary", _fake)
    torch.library.register_fake(f"{namespace}::rotary_", _fake_in_place)
    attach(namespace, "rotary", _backward, _setup_context)


def _fake(query, key, cos, sin, positions=None, **options):
    return query.new_empty(query.shape), query.new_empty(0 if key is None else key.shape)


def _fake_in_place(query, key, cos, sin, positions=None, **options):
    return None


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    _, key, cos, sin, positions = inputs
    ctx.set_materialize_grads(False)
    if key is None:
        ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(cos, sin, positions)
    ctx.options = keyword_only_inputs


def _backward(ops, ctx, grad_query, grad_key=None):
    """Turning is linear and its transpose is turning back: the op is its own gradient."""
    cos, sin, positions = ctx.saved_tensors
    wanted = needed(ctx, KEY + 1)
    grads = [grad if want else None for grad, want in zip((grad_query, grad_key), wanted, strict=True)]
    given = [grad for grad in grads if grad is not None]
    if given:
        turn = reference.rotary if torch.is_grad_enabled() else ops.rotary
        options = {**ctx.options, "inverse": not ctx.options["inverse"]}
        turned = iter(turn(given[0], given[1] if len(given) > 1 else None, cos, sin, positions, **options))
        grads = [None if grad is None else next(turned) for grad in grads]
    return *grads, None, None, None
