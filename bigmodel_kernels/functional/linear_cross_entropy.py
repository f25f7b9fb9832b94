"""The cross-entropy of a linear layer's logits."""

from torch import Tensor

from .. import backends, checks
from ..ops import direct, repeats
from .autocast import autocast, autocast_dtype
from .calls import call, straight_to_kernels

REDUCTIONS = ("mean", "sum", "none")


@repeats.repeated
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """The cross-entropy of the logits x = hidden weight^T + bias, which are never in memory all at once: not in the
    forward pass, and not in the backward pass, which computes them again.

        loss = lse - (1 - label_smoothing) * x[target] - label_smoothing * mean(x) + z_loss * lse^2

    with lse = log(sum(exp(x))) over the vocabulary, so that it is torch.nn.functional.cross_entropy(x, target) but for
    z_loss and softcap.

    Args:
        hidden: [..., width]; weight: [vocabulary, width]; bias: [vocabulary] or None. One dtype: float32, bfloat16 or
            float16 (float64 runs on the reference).
        target: [...], int64, the right class of each row; `ignore_index` where a row has none.
        ignore_index: the target of rows whose loss and gradient are 0.
        label_smoothing: the share of the target that all classes have in common, in [0, 1] (Szegedy et al., 2016).
        z_loss: weight of lse^2, which keeps the softmax's denominator near 1 (PaLM; Chowdhery et al., 2022).
        softcap: c turns the logits into c * tanh(x / c) (Gemma 2); None or 0: off.
        reduction: "mean" over the rows that are not ignored (0 if all are, where torch gives NaN), "sum", or "none".
        backend: a backend's name (see `use_backend`), or None.

    Returns: a number, or with reduction "none" [...]; in float32 whatever hidden's dtype. Sums are accumulated in
    float32; under autocast hidden, weight and bias are cast as linear's are.
    """
    straight = straight_to_kernels(hidden, backend)
    if not straight:
        checks.is_tensor("linear_cross_entropy", "hidden", hidden)
        dtype = autocast_dtype(hidden)
        if dtype is not None:
            hidden, weight, bias = (autocast(dtype, x) for x in (hidden, weight, bias))
        checks.tensors("linear_cross_entropy", ("hidden", "weight", "bias"), (hidden, weight, bias), optional=2)
        checks.has_features("linear_cross_entropy", "hidden", hidden)
        checks.weight("linear_cross_entropy", "weight", weight, None, hidden.shape[-1])
        checks.shape("linear_cross_entropy", "bias", bias, weight.shape[:1])
        checks.integers("linear_cross_entropy", "target", target, hidden, [hidden.shape[:-1]])
    checks.choice("linear_cross_entropy", "reduction", reduction, REDUCTIONS)
    options = {
        "ignore_index": ignore_index,
        "label_smoothing": checks.finite("linear_cross_entropy", "label_smoothing", label_smoothing, 0, 1),
        "z_loss": checks.finite("linear_cross_entropy", "z_loss", z_loss, 0),
        "softcap": checks.finite("linear_cross_entropy", "softcap", softcap or 0.0, 0),
    }
    ops = direct.OPS if straight else backends.resolve_for("linear_cross_entropy", hidden, backend)
    loss, *_ = call(ops, ops.linear_cross_entropy, (hidden, weight, target, bias), options)
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / _counted(target, ignore_index)


def _counted(target: Tensor, ignore_index: int) -> Tensor:
    return (target != ignore_index).sum().clamp(min=1)
