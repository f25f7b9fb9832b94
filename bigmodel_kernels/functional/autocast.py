"""torch.autocast, as torch's own functions honour it."""

import torch
from torch import Tensor

from .. import checks


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for on x's device, or None when autocast is off."""
    if not (x.is_cpu or x.is_cuda):
        return None
    device = "cpu" if x.is_cpu else "cuda"
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def autocast(dtype: torch.dtype, x: Tensor | None) -> Tensor | None:
    # As torch: floating point only, and float64 is left alone.
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(dtype)


def autocast_linear(op: str, residual: Tensor | None, x: Tensor, *others: Tensor | None):
    """The operands in autocast's dtype, the residual if it is to be added after the op, and if it is to be fused."""
    checks.is_tensor(op, "x", x)
    dtype = autocast_dtype(x)
    if dtype is None:
        return (x, *others), None, residual
    operands = tuple(autocast(dtype, operand) for operand in (x, *others))
    if residual is None or residual.dtype == operands[0].dtype:
        return operands, None, residual
    return operands, residual, None
