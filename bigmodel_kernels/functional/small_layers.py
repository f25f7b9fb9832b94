"""Layers of a few tokens in one call of the CPU kernels, since several ops and the views between them take longer than
what they compute: python/src/self_attention.cpp and encoder_layer.cpp."""

from torch import Tensor

from ..ops import direct, packed_weights
from .calls import may_go_straight, needs_gradient

_self_attention = getattr(direct.OPS, "self_attention", None)
_encoder_layer = getattr(direct.OPS, "encoder_layer", None)

# What nn/members.py says, without a look at hooks of all modules.
plain_members = getattr(direct.OPS, "plain_members", None)


def is_small(x: Tensor, width: int) -> bool:
    """Whether x, plain and unwatched, has so few rows of `width` that no small weight is packed for them."""
    if _self_attention is None or not may_go_straight(x):
        return False
    return x.numel() <= packed_weights.few_rows(x.dtype, 0) * width


def self_attention(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    residual: Tensor | None,
    heads: int,
) -> Tensor | None:
    """linear(attention of the heads of linear(x, in_weight, in_bias), out_weight, out_bias, residual), without a mask.

    Args: x: [batch, length, width] or [length, width], small; in_weight: [3 width, width], rows of query, key and
        value; out_weight: [width, width]; residual: as x.
    Returns: the bits of the ops one by one; None where they must be called: gradients, weights to be packed or unusual
        tensors.
    """
    tensors = (x, in_weight, in_bias, out_weight, out_bias, residual)
    return None if needs_gradient(tensors) else _answer(_self_attention, tensors, heads=heads)


def encoder_layer(x: Tensor, *parameters: Tensor | None, **options) -> Tensor | None:
    """A Transformer encoder layer without a mask and dropout.

    Args: x: [batch, length, width] or [length, width], small; `parameters`: weight and bias of the projections of
        query, key and value (as one), of the output, of the first norm, the two linear layers, the second norm;
        `options`: heads, activation, eps1, eps2 of the norms, norm_first.
    Returns: as self_attention.
    """
    tensors = (x, *parameters)
    return None if needs_gradient(tensors) else _answer(_encoder_layer, tensors, **options)


def _answer(function, tensors, **options) -> Tensor | None:
    try:
        return function(*tensors, **options)
    except (TypeError, RuntimeError):  # refused: the ops name what is wrong, or know what to do
        return None
