"""How wrong an op may be, without a tolerance tuned by hand.

Truth is the reference in float64, of the same (already rounded) inputs. With e(x) an error against the truth t, the
result y of an op run in a dtype may have

    e(y) <= factor * e(r) + floor * size(t),    floor = 2 * eps(dtype) + 16 * eps(float32),

where r is the result of the reference run in that dtype, and factor is 2 for outputs and 3 for gradients. The floor is
for results that the reference happens to hit exactly. Its first term is the rounding of what is stored in the dtype;
its second that of the float32 arithmetic inside, where a fused kernel takes exp2(score - lse) and differences of sums
that plain PyTorch need not take (a softmax over one key is 1 there, and its gradient 0, with no rounding at all).

The rule is held twice: with e the largest absolute error and size the largest magnitude, so that no element is far off,
and with e and size root mean squares, so that not all of them are a little off.
"""

import torch
from torch import Tensor

FORWARD = 2.0
GRADIENT = 3.0


def max_error(x: Tensor, truth: Tensor) -> float:
    """Largest absolute difference from the truth, over the elements where the truth is finite."""
    return _largest(_difference(x, truth))


def relative_error(x: Tensor, truth: Tensor) -> float:
    """Largest absolute difference from the truth, as a fraction of the truth's largest magnitude."""
    size = _largest(truth[torch.isfinite(truth)])
    return max_error(x, truth) / size if size > 0 else max_error(x, truth)


def assert_as_exact(
    name: str, actual: Tensor, reference: Tensor, truth: Tensor, factor: float, dtype: torch.dtype
) -> None:
    """Asserts that `actual` is, up to `factor`, as near the float64 `truth` as `reference` is, both run in `dtype`.

    Shape and dtype must be those of the reference; infinities must be exactly where the truth has them; NaN fails.
    """
    assert actual.shape == truth.shape, f"{name}: shape {list(actual.shape)}, expected {list(truth.shape)}"
    assert actual.dtype == reference.dtype, f"{name}: dtype {actual.dtype}, expected {reference.dtype}"
    assert not torch.isnan(actual).any(), f"{name}: {int(torch.isnan(actual).sum())} NaN of {actual.numel()}"
    infinite = torch.isinf(truth)
    same = torch.where(infinite, actual.double() == truth, torch.isfinite(actual))
    assert same.all(), f"{name}: infinities differ at {(~same).nonzero()[0].tolist()}"
    floor = 2 * torch.finfo(dtype).eps + 16 * torch.finfo(torch.float32).eps
    finite_truth = truth[~infinite]
    for measure, of in (("largest", _largest), ("root mean square", _root_mean_square)):
        error, loss = of(_difference(actual, truth)), of(_difference(reference, truth))
        allowed = factor * loss + floor * of(finite_truth)
        assert error <= allowed, (
            f"{name}: {measure} error {error:.3e} exceeds {allowed:.3e} = {factor:g} * {loss:.3e} (the reference's in "
            f"{dtype}) + {floor:.3e} * {of(finite_truth):.3e} (the truth's size)"
        )


def _difference(x: Tensor, truth: Tensor) -> Tensor:
    finite = torch.isfinite(truth)
    return x.double()[finite] - truth[finite]


def _largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def _root_mean_square(x: Tensor) -> float:
    return x.square().mean().sqrt().item() if x.numel() else 0.0
