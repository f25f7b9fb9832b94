"""The feed-forward layer."""

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import backends, checks
from ..ops import direct, repeats, shortcut
from .autocast import autocast_linear
from .calls import call, packed_weights_of, saves_for_gradient, straight_to_kernels

_PLAIN = (
    shortcut.Option("activation", tuple((name, name) for name in checks.ACTIVATIONS[1:])),
    shortcut.Option("dropout_p", ((0.0, 0.0),)),
    *(shortcut.Option(name) for name in ("gate", "w_gate", "b_gate", "dropout_seed", "backend")),
)


_answered = shortcut.answers("small_feed_forward", 6, _PLAIN, {"activation": "relu"}, backends.forced)


def feed_forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    activation: str = "relu",
    gate: str | None = None,
    w_gate: Tensor | None = None,
    b_gate: Tensor | None = None,
    residual: Tensor | None = None,
    dropout_p: float = 0.0,
    backend: str | None = None,
    *,
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """The Transformer's feed-forward layer: dropout(hidden) w2^T + b2 + residual, where hidden is, by gate,

        None:     activation(x w1^T + b1)
        "hidden": activation(x w_gate^T + b_gate) * (x w1^T + b1)       (ReGLU, GeGLU, SwiGLU)
        "input":  activation(x' w1^T + b1) with x' = x * sigmoid(x w_gate^T + b_gate).

    Args:
        x: [..., width]; w1: [hidden, width]; b1: [hidden] or None; w2: [out_width, hidden]; b2: [out_width] or None.
            One dtype: float32, bfloat16 or float16 (float64 runs on the reference).
        activation: "relu", "gelu" (exact), "gelu_tanh" or "silu".
        w_gate: [hidden, width] for gate "hidden", [width, width] for "input"; b_gate: its bias or None.
        residual: [..., out_width].
        dropout_p: probability of dropping a hidden unit, in [0, 1); applies whenever it is > 0.
        dropout_seed: int64 tensor of 0 dimensions; None draws one from torch's default generator.
        backend: a backend's name (see `use_backend`), or None.

    Returns: [..., out_width]. Sums are accumulated in float32. Under autocast a residual of another dtype is added as
    torch would, so that the result has the wider dtype.

    Source: Vaswani et al., "Attention is all you need", 2017; Shazeer, "GLU variants improve Transformer", 2020.
    """
    if not is_dynamo_compiling():
        output = _answered(
            *(x, w1, b1, w2, b2, residual), activation, dropout_p, gate, w_gate, b_gate, dropout_seed, backend
        )
        if output is not NotImplemented:
            return output
    options = {"activation": activation, "gate": gate, "dropout_p": dropout_p, "dropout_seed": dropout_seed}
    return _feed_forward(x, w1, b1, w2, b2, w_gate, b_gate, residual, backend, **options)


@repeats.repeated
def _feed_forward(x, w1, b1, w2, b2, w_gate, b_gate, residual, backend, *, activation, gate, dropout_p, dropout_seed):
    op = "feed_forward"
    gate = "none" if gate is None else gate
    straight, added_after = straight_to_kernels(x, backend), None
    if not straight:
        (x, w1, b1, w2, b2, w_gate, b_gate), added_after, residual = autocast_linear(
            op, residual, x, w1, b1, w2, b2, w_gate, b_gate
        )
        names = ("x", "w1", "w2", "b1", "b2", "w_gate", "b_gate", "residual")
        checks.tensors(op, names, (x, w1, w2, b1, b2, w_gate, b_gate, residual), optional=3)
        checks.has_features(op, "x", x)
    checks.choice(op, "activation", activation, checks.ACTIVATIONS[1:])
    checks.choice(op, "gate", gate, checks.GATES)
    if not straight:
        _check_feed_forward_shapes(op, x, w1, b1, w2, b2, gate, w_gate, b_gate, residual)
    if dropout_p != 0 or dropout_seed is not None:
        checks.dropout(op, dropout_p, dropout_seed)
    if dropout_p > 0 and dropout_seed is None:
        dropout_seed = repeats.dropout_seed(x)
    ops = direct.OPS if straight else backends.resolve_for(op, x, backend)
    learned = (x, w1, b1, w2, b2, w_gate, b_gate)
    packed = packed_weights_of(ops, x, w1, w2, w_gate)
    options = {
        "activation": activation,
        "gate": gate,
        "dropout_p": dropout_p,
        "save_preactivation": saves_for_gradient(learned, straight),
    }
    output, *_ = call(ops, ops.feed_forward, (*learned, residual, *packed, dropout_seed), options)
    return output if added_after is None else output + added_after


def _check_feed_forward_shapes(op: str, x, w1, b1, w2, b2, gate, w_gate, b_gate, residual) -> None:
    width = x.shape[-1]
    checks.weight(op, "w1", w1, None, width)
    checks.weight(op, "w2", w2, None, w1.shape[0])
    checks.shape(op, "b1", b1, w1.shape[:1])
    checks.shape(op, "b2", b2, w2.shape[:1])
    checks.shape(op, "residual", residual, (*x.shape[:-1], w2.shape[0]))
    if gate == "none":
        if w_gate is not None or b_gate is not None:
            raise ValueError(f"[{op}] w_gate or b_gate is given, but gate is None; expected gate 'hidden' or 'input'")
        return
    if w_gate is None:
        raise ValueError(f"[{op}] w_gate is missing; expected a weight for gate {gate!r}")
    checks.weight(op, "w_gate", w_gate, w1.shape[0] if gate == "hidden" else width, width)
    checks.shape(op, "b_gate", b_gate, w_gate.shape[:1])
