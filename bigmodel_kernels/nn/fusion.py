"""When a submodule may be computed inside a fused op, and when it must be called as the module that it is.

A hook, a parametrization, an adapter put in a layer's place or a method overridden in a subclass all expect to be
called. They are, at the price of the fusion; everything else is fused.
"""

import functools

import torch
from torch import Tensor

from bigmodel_kernels import functional
from bigmodel_kernels.nn.linear import Linear
from bigmodel_kernels.nn.members import GLOBAL_HOOKS

# The second is torch's out_proj; both compute as torch.nn.Linear does.
LINEAR = (torch.nn.Linear, torch.nn.modules.linear.NonDynamicallyQuantizableLinear, Linear)

_ACTIVATION_FUNCTIONS = {
    torch.nn.functional.relu: "relu",
    torch.relu: "relu",
    torch.nn.functional.gelu: "gelu",
    torch.nn.functional.silu: "silu",
}


def is_plain(module: torch.nn.Module, *classes: type[torch.nn.Module]) -> bool:
    """Whether calling `module` does exactly what its class, one of `classes`, does: no hooks, no forward of its own."""
    if type(module) not in classes or any(GLOBAL_HOOKS):
        return False
    members = module.__dict__  # as attributes of the module they are found a good deal later
    return not (
        "forward" in members
        or members["_forward_hooks"]
        or members["_forward_pre_hooks"]
        or members["_backward_hooks"]
        or members["_backward_pre_hooks"]
    )


def overrides(layer: torch.nn.Module, method: str, base: type[torch.nn.Module]) -> bool:
    """Whether the layer's class, or the layer itself, replaces a method of `base`."""
    return method in layer.__dict__ or getattr(type(layer), method) is not getattr(base, method)


@functools.cache
def _class_keeps(parts: frozenset[str], kind: type, base: type) -> bool:
    return all(getattr(kind, name) is getattr(base, name) for name in parts)


def keeps(parts: frozenset[str], module: torch.nn.Module, base: type) -> bool:
    """Whether neither the module nor a subclass has replaced one of these methods of `base`."""
    return module.__dict__.keys().isdisjoint(parts) and _class_keeps(parts, type(module), base)


def activation_name(activation) -> str | None:
    """The name that feed_forward and linear know an activation by; None for a callable that they cannot fuse."""
    if isinstance(activation, torch.nn.Module):
        if is_plain(activation, torch.nn.ReLU):
            return "relu"
        if is_plain(activation, torch.nn.SiLU):
            return "silu"
        if is_plain(activation, torch.nn.GELU):
            return "gelu" if activation.approximate == "none" else "gelu_tanh"
        return None
    for function, name in _ACTIVATION_FUNCTIONS.items():
        if activation is function:
            return name
    return None


def dropout_p(dropout: torch.nn.Module) -> float:
    """The probability at which a plain torch.nn.Dropout drops now."""
    return dropout.p if dropout.training else 0.0


def passes_through(dropout: torch.nn.Module) -> bool:
    """Whether a dropout module hands its input on unchanged, unseen by anyone."""
    return is_plain(dropout, torch.nn.Identity) or (is_plain(dropout, torch.nn.Dropout) and dropout_p(dropout) == 0.0)


def apply_linear(linear: torch.nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """linear(x) + residual, in one op where the module allows it."""
    if is_plain(linear, *LINEAR):
        try:
            return functional.linear(x, linear.weight, linear.bias, residual=residual)
        except ValueError:  # dtypes, say, that do not fit each other: torch's error is raised by torch
            pass
    out = linear(x)
    return out if residual is None else residual + out


def feed_forward(
    linear1: torch.nn.Module,
    activation,
    dropout: torch.nn.Module,
    linear2: torch.nn.Module,
    x: Tensor,
    residual: Tensor | None = None,
) -> Tensor:
    """linear2(dropout(activation(linear1(x)))) + residual, in one op where the modules and the activation allow it."""
    name = activation_name(activation)
    fusable = (
        name is not None
        and is_plain(linear1, *LINEAR)
        and is_plain(linear2, *LINEAR)
        and is_plain(dropout, torch.nn.Dropout)
        and dropout_p(dropout) < 1.0  # the ops scale by 1 / (1 - p)
    )
    if fusable:
        options = {"activation": name, "residual": residual, "dropout_p": dropout_p(dropout)}
        try:
            return functional.feed_forward(x, linear1.weight, linear1.bias, linear2.weight, linear2.bias, **options)
        except ValueError:  # as above
            pass
    return apply_linear(linear2, dropout(activation(apply_linear(linear1, x))), residual)
