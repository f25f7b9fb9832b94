"""Self-attention of a few tokens in one call of the CPU kernels, since three ops and the views between them take longer
than what they compute: python/src/self_attention.cpp."""

import torch
from torch import Tensor

from bigmodel_kernels.functional.calls import needs_gradient, straight_to_kernels
from bigmodel_kernels.nn.fusion import LINEAR, is_plain
from bigmodel_kernels.ops import direct, packed_weights

_self_attention = getattr(direct.OPS, "self_attention", None)


def answer(module: torch.nn.MultiheadAttention, x: Tensor, residual: Tensor | None) -> Tensor | None:
    """The module's output without masks and weights for x as query, key and value, plus `residual`.

    None where it must be computed op by op: many tokens, gradients, an unusual module or tensor, or something that
    watches the ops.
    """
    if _self_attention is None or not straight_to_kernels(x, None) or not _is_usual(module, x):
        return None
    if x.numel() > packed_weights.few_rows(x.dtype) * module.embed_dim:
        return None
    projection = module.out_proj
    tensors = (x, module.in_proj_weight, module.in_proj_bias, projection.weight, projection.bias, residual)
    if needs_gradient(tensors):
        return None
    try:
        return _self_attention(*tensors, heads=module.num_heads)
    except (TypeError, RuntimeError):  # refused: the ops name what is wrong, or know what to do
        return None


def _is_usual(module: torch.nn.MultiheadAttention, x: Tensor) -> bool:
    return (
        module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
        and (module.batch_first or x.dim() == 2)
        and not (module.training and module.dropout > 0.0)
        and is_plain(module.out_proj, *LINEAR)
    )
