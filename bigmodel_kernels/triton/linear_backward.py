"""linear_backward: the gradients of input, weight and bias, each product multiplying grad_output by the activation's
derivative as it reads it."""

import triton
import triton.language as tl
from torch import Tensor

from .launch import run
from .linear import run_linear
from .matrices import Matrix, given, matrix, nothing, transposed
from .product import accumulate_gradient, block_of_program, plan, store_like
from .tiles import narrow


@triton.jit
def grad_input_kernel(
    grad_output,
    preactivation,
    weight,
    grad_input,
    row_count,
    column_count,
    depth,
    ACTIVATION: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """grad_input = (grad_output * activation'(preactivation)) weight, with weight [depth, columns]."""
    block = block_of_program(row_count, column_count, BLOCKS)
    y, _ = accumulate_gradient(grad_output, preactivation, weight, block, depth, ACTIVATION, False, BLOCKS)
    store_like(grad_input, y, block, BLOCKS)


@triton.jit
def grad_weight_kernel(
    grad_output,
    preactivation,
    input,
    grad_weight,
    grad_bias,
    row_count,
    column_count,
    depth,
    ACTIVATION: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """grad_weight = (grad_output * activation'(preactivation)) input, with grad_output [out_features, tokens] and input
    [tokens, in_features]; grad_bias, where it is given: the first factor's row sums."""
    block = block_of_program(row_count, column_count, BLOCKS)
    if grad_bias is not None and block.column == 0:
        sums, row_sums = accumulate_gradient(grad_output, preactivation, input, block, depth, ACTIVATION, True, BLOCKS)
        bias, rows = tl.sum(row_sums, axis=1), tl.arange(0, BLOCKS.M)
        at = grad_bias + block.row + rows
        tl.store(at, narrow(bias, grad_bias.dtype.element_ty), mask=rows < block.row_end)
    else:
        sums, _ = accumulate_gradient(grad_output, preactivation, input, block, depth, ACTIVATION, False, BLOCKS)
    store_like(grad_weight, sums, block, BLOCKS)


def run_grad_input(grad_output: Tensor, preactivation: Tensor | None, weight: Tensor, activation: str) -> Tensor:
    """grad_output [..., out_features], weight [out_features, in_features] -> [..., in_features]."""
    output = grad_output.new_empty(*grad_output.shape[:-1], weight.shape[1])
    g, z, w, y = matrix(grad_output), matrix(preactivation), matrix(weight), matrix(output)
    (rows, depth), columns = g.data.shape, weight.shape[1]
    how = plan(
        "plain" if preactivation is None else "derivative",
        weight.dtype,
        weight.device,
        rows,
        columns,
        depth,
        g,
        z,
        w,
        y,
    )
    run(
        grad_input_kernel,
        how.grid,
        g,
        z,
        w,
        y,
        rows,
        columns,
        depth,
        ACTIVATION=activation,
        BLOCKS=how.blocks,
        **how.options,
    )
    return output


def run_grad_weight(
    grad_output: Tensor,
    preactivation: Tensor | None,
    input: Tensor,
    activation: str,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor]:
    """grad_output [..., out_features], input [..., in_features] -> (grad_weight, grad_bias), zero elements where not
    wanted. The bias alone takes the programs of the first columns, and gets the same bits."""
    if not (want_weight or want_bias):
        return nothing(input), nothing(input)
    g, z, x = transposed(matrix(grad_output)), transposed(matrix(preactivation)), matrix(input)
    rows, (depth, columns) = grad_output.shape[-1], x.data.shape
    # One kind whether or not the bias is wanted, so that the weight's gradient does not depend on that.
    how = plan("derivative", input.dtype, input.device, rows, columns, depth, g, z, x)
    if not want_weight:
        columns = min(columns, how.blocks.N)
        how = how._replace(grid=(triton.cdiv(rows, how.blocks.M),))
    grad_weight = input.new_empty(rows, columns)
    grad_bias = input.new_empty(rows) if want_bias else nothing(input)
    run(
        grad_weight_kernel,
        how.grid,
        g,
        z,
        x,
        Matrix(grad_weight, columns, 1),
        grad_bias if want_bias else None,
        rows,
        columns,
        depth,
        ACTIVATION=activation,
        BLOCKS=how.blocks,
        **how.options,
    )
    return grad_weight if want_weight else nothing(input), grad_bias


def linear_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    preactivation: Tensor | None = None,
    *,
    activation: str = "none",
    output_mask: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias, with zero elements where they are not wanted. A preactivation that was not
    saved is computed anew where an activation needs it.
    """
    want_input, want_weight, want_bias = output_mask[0], output_mask[1], output_mask[2] and bias is not None
    if grad_output.numel() == 0:
        grads = (want_input, input), (want_weight, weight), (want_bias, bias)
        return tuple(like.new_zeros(like.shape) if want else nothing(input) for want, like in grads)
    if activation == "none":
        preactivation = None
    elif given(preactivation) is None:
        preactivation = run_linear(input, weight, bias)
    grad_input = run_grad_input(grad_output, preactivation, weight, activation) if want_input else nothing(input)
    grad_weight, grad_bias = run_grad_weight(grad_output, preactivation, input, activation, want_weight, want_bias)
    return grad_input, grad_weight, grad_bias
