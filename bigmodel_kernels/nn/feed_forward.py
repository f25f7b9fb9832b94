"""The Transformer's feed-forward layer as a module."""

import functools

import torch
from torch import Tensor

from bigmodel_kernels import functional
from bigmodel_kernels.nn.fusion import LINEAR, dropout_p, is_plain

ACTIVATIONS = {
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
    "silu": torch.nn.functional.silu,
}


class FeedForward(torch.nn.Module):
    """Two linear layers with an activation between them and an optional gate, in one op (``bmk.feed_forward``).

    - ``gate=None``:     hidden = activation(linear1(x))                       (Vaswani et al., 2017)
    - ``gate="hidden"``: hidden = activation(gate_proj(x)) * linear1(x)        (ReGLU, GeGLU, SwiGLU; Shazeer, 2020)
    - ``gate="input"``:  hidden = activation(linear1(x * sigmoid(gate_proj(x))))

    and linear2(dropout(hidden)) in each case.

    Args:
        width: size of the input's and the output's last dimension.
        hidden: size between the two linear layers.
        activation: "relu", "gelu", "gelu_tanh" or "silu".
        gate: None, "hidden" or "input". ``gate_proj`` maps width to hidden ("hidden") or width to width ("input").
        bias: whether the linear layers, gate_proj included, have biases.
        dropout: probability of dropping an element of hidden, in training.

    Raises ValueError for a size that is not positive or an unknown activation or gate.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str = "relu",
        gate: str | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if width <= 0 or hidden <= 0:
            raise ValueError(f"[FeedForward] width and hidden are {width} and {hidden}: expected positive sizes")
        if activation not in ACTIVATIONS:
            raise ValueError(f"[FeedForward] activation is {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        if gate not in (None, "hidden", "input"):
            raise ValueError(f"[FeedForward] gate is {gate!r}: expected None, 'hidden' or 'input'")
        options = {"bias": bias, "device": device, "dtype": dtype}
        self.activation = activation
        self.gate = gate
        self.linear1 = torch.nn.Linear(width, hidden, **options)
        self.dropout = torch.nn.Dropout(dropout)
        self.linear2 = torch.nn.Linear(hidden, width, **options)
        if gate is None:
            self.gate_proj = None
        else:
            self.gate_proj = torch.nn.Linear(width, width if gate == "input" else hidden, **options)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [..., width] to [..., width], plus `residual` of the output's shape if given; one dtype for all."""
        linears = [linear for linear in (self.linear1, self.linear2, self.gate_proj) if linear is not None]
        fusable = is_plain(self.dropout, torch.nn.Dropout) and dropout_p(self.dropout) < 1.0
        if fusable and all(is_plain(linear, *LINEAR) for linear in linears):
            try:
                return self._fused(x, residual)
            except ValueError:
                if not x.is_nested:
                    raise
        output = self.unfused(x)
        return output if residual is None else residual + output

    def _fused(self, x: Tensor, residual: Tensor | None) -> Tensor:
        gate = self.gate_proj
        return functional.feed_forward(
            x,
            self.linear1.weight,
            self.linear1.bias,
            self.linear2.weight,
            self.linear2.bias,
            activation=self.activation,
            gate=self.gate,
            w_gate=None if gate is None else gate.weight,
            b_gate=None if gate is None else gate.bias,
            residual=residual,
            dropout_p=dropout_p(self.dropout),
        )

    def unfused(self, x: Tensor) -> Tensor:
        """The same maths as a chain of the submodules, each called: for hooks, replaced submodules, nested tensors."""
        activate = ACTIVATIONS[self.activation]
        if self.gate == "input":
            hidden = activate(self.linear1(x * self.gate_proj(x).sigmoid()))
        elif self.gate == "hidden":
            hidden = activate(self.gate_proj(x)) * self.linear1(x)
        else:
            hidden = activate(self.linear1(x))
        return self.linear2(self.dropout(hidden))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, gate={self.gate!r}"
