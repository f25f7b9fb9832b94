"""feed_forward_backward: the gradient of hidden, with the derivatives of dropout, gate and activation in its epilogue,
and the products with the weights that follow from it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import value_and_slope
from .feed_forward import gated_input
from .launch import run
from .linear import NO_DROPOUT, Dropout, dropout_of, dropout_of_block, run_linear
from .linear_backward import run_grad_weight
from .matrices import given, matrix, nothing
from .product import accumulate, block_of_program, load_like, plan, store_like


@triton.jit
def gate_gradient_kernel(
    grad_output,
    weight,
    argument,
    factor,
    grad_argument,
    grad_factor,
    value,
    dropout,
    row_count,
    column_count,
    depth,
    ACTIVATION: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """The gradients of value = dropout(activation(argument) * factor), whose own gradient is grad_output weight, with
    weight [depth, columns]. A factor that is absent is 1. value itself is stored again, for the gradient of the weight
    that it was multiplied by."""
    block = block_of_program(row_count, column_count, BLOCKS)
    grad = accumulate(grad_output, weight, block, depth, BLOCKS)
    activated, slope = value_and_slope(load_like(argument, block, BLOCKS), ACTIVATION)
    kept = dropout_of_block(dropout, block, BLOCKS) if dropout.seed is not None else 1.0
    grad *= kept
    result = activated * kept
    grad_of_activated = grad
    if factor.data is not None:
        by = load_like(factor, block, BLOCKS)
        result *= by
        grad_of_activated = grad * by
    store_like(grad_argument, grad_of_activated * slope, block, BLOCKS)
    if grad_factor.data is not None:
        store_like(grad_factor, grad * activated, block, BLOCKS)
    store_like(value, result, block, BLOCKS)


def run_gate_gradient(
    grad_output: Tensor,
    weight: Tensor,
    argument: Tensor,
    factor: Tensor | None,
    activation: str,
    dropout: Dropout = NO_DROPOUT,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """grad_output [..., out_features], weight [out_features, width], argument and factor [..., width] -> (gradient of
    argument, gradient of factor or None, value), each [..., width]."""
    grad_argument = torch.empty(argument.shape, dtype=argument.dtype, device=argument.device)
    grad_factor = None if factor is None else torch.empty_like(grad_argument)
    value = torch.empty_like(grad_argument)
    g, w = matrix(grad_output), matrix(weight)
    others = [matrix(x) for x in (argument, factor, grad_argument, grad_factor, value)]
    (rows, depth), columns = g.data.shape, weight.shape[1]
    how = plan("gradient", weight.dtype, weight.device, rows, columns, depth, g, w, *others)
    run(
        gate_gradient_kernel,
        how.grid,
        g,
        w,
        *others,
        dropout,
        rows,
        columns,
        depth,
        ACTIVATION=activation,
        BLOCKS=how.blocks,
        **how.options,
    )
    return grad_argument, grad_factor, value


def feed_forward_backward(
    grad_output: Tensor,
    input: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    w_gate: Tensor | None = None,
    b_gate: Tensor | None = None,
    preactivation: Tensor | None = None,
    gate_preactivation: Tensor | None = None,
    dropout_seed: Tensor | None = None,
    *,
    activation: str = "relu",
    gate: str = "none",
    dropout_p: float = 0.0,
    output_mask: tuple[bool, ...] = (True,) * 7,
) -> tuple[Tensor, ...]:
    """Gradients of input, w1, b1, w2, b2, w_gate and b_gate, with zero elements where they are not wanted or do not
    exist. Preactivations that were not saved are computed anew.
    """
    tensors = (input, w1, b1, w2, b2, w_gate, b_gate)
    wanted = [want and x is not None for want, x in zip(output_mask, tensors, strict=True)]
    if grad_output.numel() == 0:
        return tuple(x.new_zeros(x.shape) if want else nothing(input) for x, want in zip(tensors, wanted, strict=True))
    want_input, want_w1, want_b1, want_w2, want_b2, want_w_gate, want_b_gate = wanted
    z, gate_z = _preactivations(input, w1, b1, w_gate, b_gate, given(preactivation), given(gate_preactivation), gate)
    dropout = dropout_of(dropout_seed, dropout_p, input.device)

    if gate == "hidden":
        grad_gate_z, grad_z, hidden = run_gate_gradient(grad_output, w2, gate_z, z, activation, dropout)
    else:
        grad_z, _, hidden = run_gate_gradient(grad_output, w2, z, None, activation, dropout)
    grad_w2, grad_b2 = run_grad_weight(grad_output, None, hidden, "none", want_w2, want_b2)

    grad_input = grad_w_gate = grad_b_gate = nothing(input)
    x, direct = input, None
    if gate == "input" and (want_input or want_w1 or want_b1 or want_w_gate or want_b_gate):
        grad_gate_z, direct, x = run_gate_gradient(grad_z, w1, gate_z, input, "sigmoid")
    grad_w1, grad_b1 = run_grad_weight(grad_z, None, x, "none", want_w1, want_b1)
    if want_w_gate or want_b_gate:
        grad_w_gate, grad_b_gate = run_grad_weight(grad_gate_z, None, input, "none", want_w_gate, want_b_gate)

    if want_input and gate == "input":
        grad_input = run_linear(grad_gate_z, w_gate.t(), residual=direct)
    elif want_input:
        through_gate = run_linear(grad_gate_z, w_gate.t()) if gate == "hidden" else None
        grad_input = run_linear(grad_z, w1.t(), residual=through_gate)
    return grad_input, grad_w1, grad_b1, grad_w2, grad_b2, grad_w_gate, grad_b_gate


def _preactivations(
    input: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w_gate: Tensor | None,
    b_gate: Tensor | None,
    z: Tensor | None,
    gate_z: Tensor | None,
    gate: str,
) -> tuple[Tensor, Tensor | None]:
    """Those of w1 and w_gate, computed where they were not saved."""
    if z is not None and (gate == "none" or gate_z is not None):
        return z, gate_z
    x = input
    if gate == "hidden":
        gate_z = run_linear(input, w_gate, b_gate)
    elif gate == "input":
        gate_z = torch.empty(input.shape, dtype=input.dtype, device=input.device)
        x = gated_input(input, w_gate, b_gate, gate_z)
    return run_linear(x, w1, b1), gate_z
