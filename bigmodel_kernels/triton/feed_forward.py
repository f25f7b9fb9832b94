"""feed_forward: two products, the first with bias, activation, gate and dropout in its epilogue;
csrc/include/bigmodel/feed_forward.h is the contract.

A hidden gate is computed beside what it gates, in one kernel with two accumulators. An input gate is a product of its
own, whose epilogue multiplies by the input.
"""

import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .launch import run
from .linear import NO_DROPOUT, Dropout, dropout_of, dropout_of_block, load_bias, run_linear
from .matrices import matrix, nothing, transposed, vector
from .product import accumulate_pair, block_of_program, plan, store_like


@triton.jit
def gated_hidden_kernel(
    input,
    weight,
    gate_weight,
    bias,
    gate_bias,
    hidden,
    preactivation,
    gate_preactivation,
    dropout,
    row_count,
    column_count,
    depth,
    ACTIVATION: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """hidden = dropout(activation(input gate_weight + gate_bias) * (input weight + bias)); weights [depth, columns]."""
    block = block_of_program(row_count, column_count, BLOCKS)
    y, gate = accumulate_pair(input, weight, gate_weight, block, depth, BLOCKS)
    if bias.data is not None:
        y += load_bias(bias, block, BLOCKS)
    if gate_bias.data is not None:
        gate += load_bias(gate_bias, block, BLOCKS)
    if preactivation.data is not None:
        store_like(preactivation, y, block, BLOCKS)
        store_like(gate_preactivation, gate, block, BLOCKS)
    y *= activate(gate, ACTIVATION)
    if dropout.seed is not None:
        y *= dropout_of_block(dropout, block, BLOCKS)
    store_like(hidden, y, block, BLOCKS)


def run_gated_hidden(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    activation: str,
    dropout: Dropout = NO_DROPOUT,
    preactivation: Tensor | None = None,
    gate_preactivation: Tensor | None = None,
) -> Tensor:
    """Launches gated_hidden_kernel, with weights [hidden, width] -> hidden [..., hidden]."""
    hidden = input.new_empty(*input.shape[:-1], weight.shape[0])
    x, w, v, y = matrix(input), transposed(matrix(weight)), transposed(matrix(gate_weight)), matrix(hidden)
    (rows, depth), columns = x.data.shape, weight.shape[0]
    how = plan("pair", input.dtype, input.device, rows, columns, depth, x, w, v, y)
    run(
        gated_hidden_kernel,
        how.grid,
        x,
        w,
        v,
        vector(bias),
        vector(gate_bias),
        y,
        matrix(preactivation),
        matrix(gate_preactivation),
        dropout,
        rows,
        columns,
        depth,
        ACTIVATION=activation,
        BLOCKS=how.blocks,
        **how.options,
    )
    return hidden


def gated_input(input: Tensor, w_gate: Tensor, b_gate: Tensor | None, gate_preactivation: Tensor | None) -> Tensor:
    """input * sigmoid(input w_gate^T + b_gate); the sigmoid's argument is stored where it is asked for."""
    return run_linear(input, w_gate, b_gate, factor=input, activation="sigmoid", preactivation=gate_preactivation)


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
    leading = input.shape[:-1]
    output = input.new_empty(*leading, w2.shape[0])
    z = input.new_empty(*leading, w1.shape[0]) if save_preactivation else None
    gate_z = input.new_empty(*leading, w_gate.shape[0]) if save_preactivation and gate != "none" else None
    if output.numel() > 0:
        dropout = dropout_of(dropout_seed, dropout_p, input.device)
        if gate == "hidden":
            hidden = run_gated_hidden(input, w1, b1, w_gate, b_gate, activation, dropout, z, gate_z)
        else:
            x = gated_input(input, w_gate, b_gate, gate_z) if gate == "input" else input
            hidden = run_linear(x, w1, b1, activation=activation, dropout=dropout, preactivation=z)
        run_linear(hidden, w2, b2, residual, output=output)
    return output, nothing(input) if z is None else z, nothing(input) if gate_z is None else gate_z
