"""A linear layer with an activation and a residual: activation(input weight^T + bias) + residual."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    packed_weight: Tensor | None = None,
    *,
    activation: str = "none",
    save_preactivation: bool = False,
) -> tuple[Tensor, Tensor]:
    """Shapes: input [..., in_features]; weight [out_features, in_features]; bias [out_features]; residual and output
    [..., out_features]. packed_weight, another layout of the weight, is not read here. Returns the output and, if
    asked for, input weight^T + bias (else a tensor of zero elements).
    """
    preactivation = F.linear(input, weight, bias)
    output = activate(preactivation, activation)
    if residual is not None:
        output = output + residual
    return output, preactivation if save_preactivation else input.new_empty(0)


def activate(x: Tensor, activation: str) -> Tensor:
    """ReLU, GELU exact or by its tanh approximation (Hendrycks and Gimpel, 2016), SiLU (Elfwing et al., 2017)."""
    match activation:
        case "none":
            return x
        case "relu":
            return torch.relu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "silu":
            return F.silu(x)
    raise ValueError(f"[linear] activation is '{activation}'; expected none, relu, gelu, gelu_tanh or silu")
