"""LayerNorm and RMSNorm, and either of them fused with the residual addition before it."""

import torch
from torch import Tensor

from bigmodel_kernels import functional
from bigmodel_kernels.nn.counterparts import computes_for
from bigmodel_kernels.nn.fusion import is_plain
from bigmodel_kernels.nn.members import parameter

_TORCHS = {"layer": torch.nn.LayerNorm, "rms": torch.nn.RMSNorm}
_EPS, _EPS_OF_FLOAT64 = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))


@computes_for(torch.nn.LayerNorm)
class LayerNorm(torch.nn.LayerNorm):
    """torch.nn.LayerNorm (Ba et al., 2016; https://arxiv.org/abs/1607.06450) computed by ``bmk.add_norm``.

    Input and output [..., *normalized_shape], of one dtype. Raises RuntimeError for another shape or dtype, as torch.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _normalise(self, input, None, "layer")[1]


@computes_for(torch.nn.RMSNorm)
class RMSNorm(torch.nn.RMSNorm):
    """torch.nn.RMSNorm (Zhang and Sennrich, 2019; https://arxiv.org/abs/1910.07467) computed by ``bmk.add_norm``.

    Input and output [..., *normalized_shape]. ``eps=None`` means the machine epsilon of fp32 (of float64 for float64
    input), as in torch. Raises RuntimeError for another shape, as torch.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _normalise(self, x, None, "rms")[1]


def add_norm(norm: torch.nn.Module, branch: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """(total, norm(total)) with total = residual + branch, in one pass where `norm` allows it.

    residual None: the branch is the total already.
    """
    if not is_plain(norm, LayerNorm, RMSNorm, torch.nn.LayerNorm, torch.nn.RMSNorm):
        total = branch if residual is None else residual + branch
        return total, norm(total)
    if residual is not None and residual.dtype != branch.dtype:  # under autocast; torch's addition promotes
        dtype = torch.promote_types(residual.dtype, branch.dtype)
        residual, branch = residual.to(dtype), branch.to(dtype)
    return _normalise(norm, branch, residual, "rms" if isinstance(norm, torch.nn.RMSNorm) else "layer")


def _normalise(norm: torch.nn.Module, x: Tensor, residual: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    shape, eps = norm.normalized_shape, norm.eps
    weight, bias = parameter(norm, "weight"), None if kind == "rms" else parameter(norm, "bias")
    wide = x.dtype is torch.float64
    if eps is None:
        eps = _EPS_OF_FLOAT64 if wide else _EPS
    mixed = wide and weight is not None and weight.dtype is not torch.float64  # our op would take float32
    try:
        if not mixed and len(shape) == 1 and x.size(-1) == shape[0]:
            return functional.add_norm(x, residual, weight, bias, kind, eps)
        if not mixed and len(shape) > 1 and not x.is_nested and x.shape[-len(shape) :] == shape:
            # The op normalises over one dimension.
            flat = (
                None if operand is None else operand.flatten(-len(shape)) for operand in (x, residual, weight, bias)
            )
            total, normed = functional.add_norm(*flat, kind, eps)
            return total.view_as(x), normed.view_as(x)
    except (ValueError, IndexError):
        pass
    # What is not for our op torch computes (nested tensors, RMSNorm of mixed dtypes), or has an error for.
    total = x if residual is None else residual + x
    return total, _TORCHS[kind].forward(norm, total)
