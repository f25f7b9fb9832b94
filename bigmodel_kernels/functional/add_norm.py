"""A sum and its normalisation."""

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import backends, checks
from ..ops import direct, repeats, shortcut
from ..ops.add_norm import plain
from .autocast import autocast_dtype
from .calls import call, straight_to_kernels

_PLAIN = (
    shortcut.Option("kind", tuple((kind, kind) for kind in checks.NORM_KINDS)),
    shortcut.Option("eps", (), number=True),
    shortcut.Option("backend"),
)
_answered = shortcut.answers(
    "add_norm_without_statistics", 4, _PLAIN, {"kind": "layer", "eps": 1e-5}, backends.forced, recorded=plain
)


def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None = None,
    kind: str = "layer",
    eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """sum = x + residual, and its normalisation over the last dimension times weight plus bias, in one pass.

    Args:
        x: [..., width]; float32, bfloat16 or float16 (float64 runs on the reference). residual: the same, or None.
        weight, bias: [width], in x's dtype or float32, or None.
        kind: "layer": (sum - mean) / sqrt(variance + eps) with the biased variance, as torch.nn.LayerNorm; "rms":
            sum / sqrt(mean(sum^2) + eps), as torch.nn.RMSNorm.
        eps: added to the variance or the mean square.
        backend: a backend's name (see `use_backend`), or None.

    Returns: (sum, normed), both [..., width] in x's dtype; sum is x itself without a residual. Statistics are taken in
    float32. Under autocast x and residual of different dtypes are widened to the common one.

    Source: Ba et al., "Layer normalization", 2016; Zhang and Sennrich, "Root mean square layer normalization", 2019.
    """
    if not is_dynamo_compiling():
        outputs = _answered(x, residual, weight, bias, kind, eps, backend)
        if outputs is not NotImplemented:
            return (x, outputs) if residual is None else outputs
    return _add_norm(x, residual, weight, bias, kind, eps, backend)


@repeats.repeated
def _add_norm(x, residual, weight, bias, kind, eps, backend):
    straight = straight_to_kernels(x, backend)
    if not straight:
        checks.is_tensor("add_norm", "x", x)
        if isinstance(residual, Tensor) and x.dtype != residual.dtype and autocast_dtype(x) is not None:
            wider = torch.promote_types(x.dtype, residual.dtype)
            x, residual = x.to(wider), residual.to(wider)
        checks.tensors("add_norm", ("x", "residual"), (x, residual), optional=1)
        checks.has_features("add_norm", "x", x)
        checks.shape("add_norm", "residual", residual, x.shape)
        checks.norm_parameter("add_norm", "weight", weight, x)
        checks.norm_parameter("add_norm", "bias", bias, x)
        if weight is not None and bias is not None and weight.dtype != bias.dtype:
            raise ValueError(f"[add_norm] weight has dtype {weight.dtype}, bias {bias.dtype}; expected one dtype")
    checks.choice("add_norm", "kind", kind, checks.NORM_KINDS)
    options = {"kind": kind, "eps": checks.finite("add_norm", "eps", eps, minimum=0)}
    ops = direct.OPS if straight else backends.resolve_for("add_norm", x, backend)
    total, normed, *_ = call(ops, ops.add_norm, (x, residual, weight, bias), options, returned=2)
    return x if residual is None else total, normed
