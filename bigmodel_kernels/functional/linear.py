"""The linear layer."""

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import backends, checks
from ..ops import direct, repeats, shortcut
from ..ops.linear import plain
from .autocast import autocast_linear
from .calls import call, packed_weights_of, saves_for_gradient, straight_to_kernels

_PLAIN = (
    shortcut.Option("activation", ((None, "none"), *((name, name) for name in checks.ACTIVATIONS))),
    shortcut.Option("backend"),
)


_answered = shortcut.answers("small_linear", 4, _PLAIN, {"activation": "none"}, backends.forced, recorded=plain)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """activation(x weight^T + bias) + residual, in one pass.

    Args:
        x: [..., in_features]; weight: [out_features, in_features]; bias: [out_features]; residual:
            [..., out_features]. One dtype: float32, bfloat16 or float16 (float64 runs on the reference).
        activation: None, "relu", "gelu" (exact), "gelu_tanh" or "silu".
        backend: a backend's name (see `use_backend`), or None.

    Returns: [..., out_features]. Sums are accumulated in float32. Under autocast a residual of another dtype is added
    as torch would, so that the result has the wider dtype.
    """
    if not is_dynamo_compiling():
        output = _answered(x, weight, bias, residual, activation, backend)
        if output is not NotImplemented:
            return output
    return _linear(x, weight, bias, activation, residual, backend)


@repeats.repeated
def _linear(x, weight, bias, activation, residual, backend):
    straight, added_after = straight_to_kernels(x, backend), None
    if not straight:
        (x, weight, bias), added_after, residual = autocast_linear("linear", residual, x, weight, bias)
        checks.tensors("linear", ("x", "weight", "bias", "residual"), (x, weight, bias, residual), optional=2)
        checks.has_features("linear", "x", x)
        checks.weight("linear", "weight", weight, None, x.shape[-1])
        checks.shape("linear", "bias", bias, weight.shape[:1])
        checks.shape("linear", "residual", residual, (*x.shape[:-1], weight.shape[0]))
    if activation is None or activation == "none":
        options = {"activation": "none", "save_preactivation": False}
    else:
        checks.choice("linear", "activation", activation, checks.ACTIVATIONS)
        options = {"activation": activation, "save_preactivation": saves_for_gradient((x, weight, bias), straight)}
    ops = direct.OPS if straight else backends.resolve_for("linear", x, backend)
    output, *_ = call(ops, ops.linear, (x, weight, bias, residual, *packed_weights_of(ops, x, weight)), options)
    return output if added_after is None else output + added_after
