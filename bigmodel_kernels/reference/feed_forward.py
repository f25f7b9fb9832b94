"""The Transformer's feed-forward layer (Vaswani et al., 2017) and its gated forms (Shazeer, "GLU variants", 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import activate
from .philox import dropout


def feed_forward(
    input: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    w_gate: Tensor | None = None,
    b_gate: Tensor | None = None,
    residual: Tensor | None = None,
    packed_w1: Tensor | None = None,
    packed_w2: Tensor | None = None,
    packed_w_gate: Tensor | None = None,
    dropout_seed: Tensor | None = None,
    *,
    activation: str = "relu",
    gate: str = "none",
    dropout_p: float = 0.0,
    save_preactivation: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """dropout(hidden) w2^T + b2 + residual, where hidden is
    gate "none":   activation(x w1^T + b1)
    gate "hidden": activation(x w_gate^T + b_gate) * (x w1^T + b1)
    gate "input":  activation(x' w1^T + b1) with x' = x * sigmoid(x w_gate^T + b_gate).

    Shapes: input [..., width]; w1 [hidden, width]; w2 [out_width, hidden]; w_gate [hidden, width] (gate "hidden") or
    [width, width] (gate "input"); residual and output [..., out_width]. Packed weights are not read here. Returns the
    output and, if asked for, the preactivations of w1 and w_gate (else, and without a gate, zero elements).
    """
    gate_preactivation = input.new_empty(0) if gate == "none" else F.linear(input, w_gate, b_gate)
    x = input * torch.sigmoid(gate_preactivation) if gate == "input" else input
    preactivation = F.linear(x, w1, b1)
    if gate == "hidden":
        hidden = activate(gate_preactivation, activation) * preactivation
    else:
        hidden = activate(preactivation, activation)
    if dropout_p > 0:
        hidden = dropout(hidden.reshape(1, 1, -1, hidden.shape[-1]), dropout_p, dropout_seed).reshape(hidden.shape)
    output = F.linear(hidden, w2, b2)
    if residual is not None:
        output = output + residual
    if not save_preactivation:
        return output, input.new_empty(0), input.new_empty(0)
    return output, preactivation, gate_preactivation
