"""One call of a contender: its outputs and gradients by name, and how far they are from the truth. torch only: workers
that have nothing else import it."""

import math

import torch
from torch import Tensor

from .case import Function, Inputs


def run_once(function: Function, inputs: Inputs, differentiable: tuple[str, ...]) -> dict[str, Tensor]:
    """One forward call, or one forward and backward call; outputs and gradients by name."""
    if not differentiable:
        with torch.no_grad():
            return named(function(inputs))
    leaves = [inputs[name] for name in differentiable]
    for leaf in leaves:
        leaf.requires_grad_()
    outputs = named(function(inputs))
    grad_outputs = [inputs[f"grad_{name}"] for name in outputs]
    gradients = torch.autograd.grad(list(outputs.values()), leaves, grad_outputs)
    return {name: output.detach() for name, output in outputs.items()} | dict(
        zip(differentiable, gradients, strict=True)
    )


def named(outputs: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
    """One output is "output", several are "output 0", "output 1" ..."""
    if isinstance(outputs, Tensor):
        return {"output": outputs}
    return {f"output {index}": output for index, output in enumerate(outputs)}


def largest_error(results: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The largest deviation of any output or gradient, relative to the largest true value in the same tensor."""
    worst = 0.0
    for name, true in truth.items():
        deviation = (results[name].double() - true).abs().max().item()
        if not math.isfinite(deviation):
            raise ArithmeticError(f"{name} is NaN or infinite where float64 is not")
        worst = max(worst, deviation / true.abs().max().item())
    return worst


def own_copy(inputs: Inputs) -> Inputs:
    """The same values in new memory."""
    return {name: None if tensor is None else tensor.detach().clone() for name, tensor in inputs.items()}
