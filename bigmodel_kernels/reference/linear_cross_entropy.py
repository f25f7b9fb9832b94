"""The cross-entropy of a linear layer's logits."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """With x = hidden weight^T + bias, or softcap * tanh(x / softcap), and lse the logarithm of sum(exp(x)):

        loss = lse - (1 - label_smoothing) * x[target] - label_smoothing * mean(x) + z_loss * lse^2

    and 0 where target is ignore_index. Shapes: hidden [..., width]; weight [vocabulary, width]; bias [vocabulary];
    target, loss and lse [...], the last two in float32 (float64 for float64); lse is not differentiable.
    """
    logits = F.linear(hidden, weight, bias)
    x = logits if logits.dtype == torch.float64 else logits.float()
    if softcap > 0:
        x = softcap * torch.tanh(x / softcap)
    lse = torch.logsumexp(x, dim=-1)
    ignored = target == ignore_index
    right = x.gather(-1, target.masked_fill(ignored, 0)[..., None]).squeeze(-1)
    loss = lse - (1 - label_smoothing) * right + z_loss * lse.square()
    if label_smoothing > 0:  # else a logit of -inf would give 0 * inf
        loss = loss - label_smoothing * x.mean(-1)
    return loss.masked_fill(ignored, 0.0), lse.detach()
