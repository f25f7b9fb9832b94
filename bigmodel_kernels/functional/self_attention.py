"""Self-attention of a few tokens in one call of the CPU kernels, since three ops and the views between them take longer
than what they compute: python/src/self_attention.cpp."""

from torch import Tensor

from ..ops import direct, packed_weights
from .calls import needs_gradient, straight_to_kernels

_self_attention = getattr(direct.OPS, "self_attention", None)


def small_self_attention(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    residual: Tensor | None,
    heads: int,
) -> Tensor | None:
    """linear(attention of the heads of linear(x, in_weight, in_bias), out_weight, out_bias, residual), without a mask.

    Args: x: [batch, length, width] or [length, width]; in_weight: [3 width, width], rows of query, key and value;
        out_weight: [width, width]; residual: as x.
    Returns: the bits of the ops one by one; None where they must be called: many tokens, gradients, unusual tensors, or
        something that watches the ops.
    """
    if _self_attention is None or not straight_to_kernels(x, None):
        return None
    tensors = (x, in_weight, in_bias, out_weight, out_bias, residual)
    if x.numel() > packed_weights.few_rows(x.dtype) * out_weight.shape[0] or needs_gradient(tensors):
        return None
    try:
        return _self_attention(*tensors, heads=heads)
    except (TypeError, RuntimeError):  # refused: the ops name what is wrong, or know what to do
        return None
