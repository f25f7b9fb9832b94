"""What torch needs to know of the ops beyond their kernels: shapes without data (fakes) and gradients (autograd)."""

from . import (
    add_norm,
    attention,
    attention_decode,
    attention_varlen,
    attention_weights,
    feed_forward,
    linear,
    linear_cross_entropy,
    rotary,
)

_OPS = (
    attention,
    attention_weights,
    attention_varlen,
    attention_decode,
    linear,
    feed_forward,
    add_norm,
    rotary,
    linear_cross_entropy,
)


def register(namespace: str) -> None:
    """Attaches fakes and gradients to `torch.ops.<namespace>`, which holds the schemas of python/src/library.cpp."""
    for op in _OPS:
        op.register(namespace)
