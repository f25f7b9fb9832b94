"""A residual sum and its normalisation: LayerNorm (Ba et al., 2016) or RMSNorm (Zhang and Sennrich, 2019)."""

import torch
from torch import Tensor


def add_norm(
    input: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    kind: str = "layer",
    eps: float = 1e-05,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """sum = input + residual; normed = (sum - mean) * rstd * weight + bias over the last dimension, where rstd is
    1 / sqrt(variance + eps) for kind "layer" and, with no mean subtracted, 1 / sqrt(mean(sum^2) + eps) for "rms".

    Shapes: input, residual, sum, normed [..., width]; weight, bias [width]; mean, rstd [...], not differentiable. sum
    has zero elements without a residual, mean for kind "rms".
    """
    total = input if residual is None else input + residual
    x = total if total.dtype == torch.float64 else total.float()
    mean = x.mean(dim=-1, keepdim=True)
    centred = x - mean if kind == "layer" else x
    rstd = torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps)
    normed = centred * rstd
    if weight is not None:
        normed = normed * weight
    if bias is not None:
        normed = normed + bias
    return (
        input.new_empty(0) if residual is None else total,
        normed.to(input.dtype),
        input.new_empty(0) if kind == "rms" else mean.detach().squeeze(-1),
        rstd.detach().squeeze(-1),
    )
