"""LayerNorm and RMSNorm, and either of them fused with the residual addition before it."""

import torch
from torch import Tensor

from bigmodel_kernels import functional
from bigmodel_kernels.nn.counterparts import computes_for
from bigmodel_kernels.nn.fusion import is_plain


@computes_for(torch.nn.LayerNorm)
class LayerNorm(torch.nn.LayerNorm):
    """torch.nn.LayerNorm (Ba et al., 2016; https://arxiv.org/abs/1607.06450) computed by ``bmk.add_norm``.

    Input and output [..., *normalized_shape], of one dtype. Raises RuntimeError for another shape.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _normalise(self, input, None)[1]


@computes_for(torch.nn.RMSNorm)
class RMSNorm(torch.nn.RMSNorm):
    """torch.nn.RMSNorm (Zhang and Sennrich, 2019; https://arxiv.org/abs/1910.07467) computed by ``bmk.add_norm``.

    Input and output [..., *normalized_shape]. ``eps=None`` means the machine epsilon of fp32 (of float64 for float64
    input), as in torch. Raises RuntimeError for another shape.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _normalise(self, x, None)[1]


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
    return _normalise(norm, branch, residual)


def _normalise(norm: torch.nn.Module, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    dims = len(norm.normalized_shape)
    if tuple(x.shape[-dims:]) != norm.normalized_shape:
        raise RuntimeError(
            f"Given normalized_shape={list(norm.normalized_shape)}, expected input with shape "
            f"[*, {', '.join(map(str, norm.normalized_shape))}], but got input of size{list(x.shape)}"
        )
    rms = isinstance(norm, torch.nn.RMSNorm)
    eps = norm.eps
    if eps is None:
        eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    operands = (x, residual, norm.weight, None if rms else norm.bias)
    kind = "rms" if rms else "layer"
    if dims == 1:
        return functional.add_norm(*operands, kind=kind, eps=eps)
    # The op normalises over one dimension.
    flat = [None if operand is None else operand.flatten(-dims) for operand in operands]
    total, normed = functional.add_norm(*flat, kind=kind, eps=eps)
    return total.view_as(x), normed.view_as(x)
