"""The documented API: what the ops compute, for every backend alike.

Arguments are checked here and errors begin with the op's name in brackets (`[attention] ...`): ValueError for wrong
shapes, dtypes and values, TypeError for wrong types, RuntimeError when a backend was named that cannot run the call.
Every function is differentiable (twice through the reference), honours torch.autocast, and traces under
torch.compile(fullgraph=True).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import backends, checks, reference
from .ops import direct, gradients, packed_weights, repeats


def _straight_to_kernels(x: Tensor, backend: str | None) -> bool:
    """Whether a call, of which x is the first tensor, needs nothing from this module but its options: no cast, no
    choice of a backend, and no check of tensors that kernels do not make (and none that they have refused)."""
    if torch.compiler.is_compiling():
        return False
    repeats.current.straight = straight = (
        backend is None and not repeats.current.running and backends.forced.name is None and direct.takes(x)
    )
    return straight


@repeats.repeated
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool | str = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
    window: Sequence[int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention, softmax(scores) value, without holding the scores in memory.

    The score of query i and key j is built in this order: scale * dot(query[i], key[j]); softcap; minus ALiBi; plus
    the additive mask; -inf where causal, window or a boolean mask remove the key. The diagonal d(i) is i for causal
    "top_left" and i + kv_len - q_len otherwise.

    Args:
        query: [..., heads, q_len, head_dim]; float32, bfloat16 or float16 (float64 runs on the reference).
        key: [..., kv_heads, kv_len, head_dim]; heads is a multiple of kv_heads (grouped-query attention).
        value: [..., kv_heads, kv_len, value_dim]. Two-dimensional query, key and value are one head.
        mask: broadcasts to [..., heads, q_len, kv_len]; boolean (True: may attend), or additive in float32 or the
            query's dtype, and then differentiable.
        causal: False; True or "top_left" (as torch aligns it); "bottom_right" (as caches need it): keeps j <= d(i).
        scale: factor of the dot products; None: 1 / sqrt(head_dim).
        dropout_p: probability of dropping a softmax weight, in [0, 1); applies whenever it is > 0.
        dropout_seed: int64 tensor of 0 dimensions; None draws one from torch's default generator.
        window: (left, right) keeps d(i) - left <= j <= d(i) + right; None or -1 leaves a side unbounded.
        softcap: c turns a score into c * tanh(score / c) (Gemma 2); None or 0: off.
        alibi_slopes: [heads] or [batch, heads]: subtracts slope * |d(i) - j| (Press et al., 2022). No gradient.
        sinks: [heads]: a logit per head in the softmax's denominator and the lse (Xiao et al., 2023).
        return_lse: also return the logarithm of the softmax's denominator.
        backend: a backend's name (see `use_backend`), or None.

    Returns: output [..., heads, q_len, value_dim]; with return_lse also lse [..., heads, q_len] in float32. A query
    that may see no key gives output 0, lse -inf (or the sink's logit) and zero gradients.

    Source: Vaswani et al., "Attention is all you need", 2017; Dao et al., "FlashAttention", 2022.
    """
    straight = _straight_to_kernels(query, backend)
    if not straight:
        query, key, value, mask = _autocast_attention("attention", query, key, value, mask)
    four_dims = query.dim() == 4
    if not straight or not four_dims:
        checks.is_tensor("attention", "value", value)
        checks.attention_tensors("attention", query, key, value)
    if mask is not None:
        checks.mask("attention", mask, query, key.shape[-2])
    if dropout_p != 0 or dropout_seed is not None:
        checks.dropout("attention", dropout_p, dropout_seed)
    if sinks is not None:
        checks.per_head("attention", "sinks", sinks, query, [query.shape[-3:-2] or (1,)])
        sinks = sinks.to(_statistics_dtype(query))
    options = _score_options("attention", causal, scale, window, softcap, dropout_p)
    if dropout_p > 0 and dropout_seed is None:
        dropout_seed = repeats.dropout_seed(query)
    ops = direct.OPS if straight else backends.resolve_for("attention", query, backend)
    inputs = (
        *((query, key, value) if four_dims else _four_dims(query, key, value)),
        mask if mask is None else _mask_of_four_dims(mask, query),
        alibi_slopes if alibi_slopes is None else _checked_slopes("attention", alibi_slopes, query),
        sinks,
        dropout_seed,
    )
    outputs = _call(ops, ops.attention, inputs, options, returned=2 if return_lse else 1)
    output = outputs[0] if four_dims else outputs[0].reshape(*query.shape[:-1], value.shape[-1])
    return (output, outputs[1].reshape(query.shape[:-1])) if return_lse else output


@repeats.repeated
def attention_weights(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool | str = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
    window: Sequence[int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    average_heads: bool = False,
    backend: str | None = None,
) -> Tensor:
    """The softmax weights of an `attention(..., return_lse=True)` call, from its query, key, lse and options.

    Args:
        query, key, mask, causal, scale, window, softcap, alibi_slopes, backend: as they were given to `attention`.
        lse: [..., heads, q_len], as `attention` returned it (sinks have entered it). Differentiable.
        dropout_p, dropout_seed: as given to `attention`; the seed is required when dropout_p > 0.
        average_heads: return the mean over the heads instead; the weights per head are then never in memory.

    Returns: [..., heads, q_len, kv_len], or [..., q_len, kv_len] with average_heads, in the query's dtype. Rows whose
    lse is -inf are 0.
    """
    straight = _straight_to_kernels(query, backend)
    if not straight:
        query, key, _, mask = _autocast_attention("attention_weights", query, key, None, mask)
    if not straight or query.dim() != 4:  # kernels see four dimensions
        checks.attention_tensors("attention_weights", query, key, None)
    if mask is not None:
        checks.mask("attention_weights", mask, query, key.shape[-2])
    if dropout_p != 0 or dropout_seed is not None:
        checks.dropout("attention_weights", dropout_p, dropout_seed)
    checks.per_head("attention_weights", "lse", lse, query, [query.shape[:-1]])
    if dropout_p > 0 and dropout_seed is None:
        raise ValueError("[attention_weights] dropout_seed is missing; expected the seed that attention was given")
    options = _score_options("attention_weights", causal, scale, window, softcap, dropout_p)
    options["average_heads"] = bool(average_heads)
    ops = direct.OPS if straight else backends.resolve_for("attention_weights", query, backend)
    query4, key4 = (query, key) if query.dim() == 4 else _four_dims(query, key)
    inputs = (
        query4,
        key4,
        lse.to(_statistics_dtype(query)).reshape(query4.shape[:-1]),
        _mask_of_four_dims(mask, query),
        _checked_slopes("attention_weights", alibi_slopes, query),
        dropout_seed,
    )
    weights = _call(ops, ops.attention_weights, inputs, options)
    if average_heads:
        return weights.reshape(*query.shape[:-3], query.shape[-2], key.shape[-2])
    return weights if query.dim() == 4 else weights.reshape(*query.shape[:-1], key.shape[-2])


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, with its signature and meaning, on our kernels.

    Shapes as there: query [..., heads, q_len, head_dim]; key and value likewise, their leading dimensions broadcast;
    with enable_gqa their heads divide the query's. is_causal aligns at the top left. Rows whose mask removes every key
    give 0.

    Raises: ValueError if attn_mask and is_causal are both given, and what `attention` raises.
    """
    op = "scaled_dot_product_attention"
    checks.tensors(op, ("query", "key", "value"), (query, key, value), same_dtype=False)
    if attn_mask is not None and is_causal:
        raise ValueError(f"[{op}] attn_mask and is_causal are both given; expected at most one of them")
    dims = max(query.dim(), key.dim(), value.dim())
    if min(query.dim(), key.dim(), value.dim()) < 2:
        raise ValueError(f"[{op}] query, key and value have at least 2 dimensions, [..., length, features]")
    if query.dim() == key.dim() == value.dim() == 4 and query.shape[0] == key.shape[0] == value.shape[0]:
        same_heads = query.shape[1] == key.shape[1] == value.shape[1]
    else:
        same_heads = False
    if not same_heads and dims > 2:
        query, key, value = _broadcast_leading(op, query, key, value, enable_gqa)
    return attention(query, key, value, mask=attn_mask, causal=is_causal, scale=scale, dropout_p=dropout_p)


@repeats.repeated
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
    straight, added_after = _straight_to_kernels(x, backend), None
    if not straight:
        (x, weight, bias), added_after, residual = _autocast_linear("linear", residual, x, weight, bias)
        checks.tensors("linear", ("x", "weight", "bias", "residual"), (x, weight, bias, residual), optional=2)
        checks.has_features("linear", "x", x)
        checks.weight("linear", "weight", weight, None, x.shape[-1])
        checks.shape("linear", "bias", bias, weight.shape[:1])
        checks.shape("linear", "residual", residual, (*x.shape[:-1], weight.shape[0]))
    if activation is None or activation == "none":
        options = {"activation": "none", "save_preactivation": False}
    else:
        checks.choice("linear", "activation", activation, checks.ACTIVATIONS)
        options = {"activation": activation, "save_preactivation": _needs_gradient((x, weight, bias))}
    ops = direct.OPS if straight else backends.resolve_for("linear", x, backend)
    output, *_ = _call(ops, ops.linear, (x, weight, bias, residual, *_packed(ops, x, weight)), options)
    return output if added_after is None else output + added_after


@repeats.repeated
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
    op = "feed_forward"
    gate = "none" if gate is None else gate
    straight, added_after = _straight_to_kernels(x, backend), None
    if not straight:
        (x, w1, b1, w2, b2, w_gate, b_gate), added_after, residual = _autocast_linear(
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
    packed = _packed(ops, x, w1, w2, w_gate)
    options = {
        "activation": activation,
        "gate": gate,
        "dropout_p": dropout_p,
        "save_preactivation": _needs_gradient(learned),
    }
    output, *_ = _call(ops, ops.feed_forward, (*learned, residual, *packed, dropout_seed), options)
    return output if added_after is None else output + added_after


@repeats.repeated
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
    straight = _straight_to_kernels(x, backend)
    if not straight:
        checks.is_tensor("add_norm", "x", x)
        if isinstance(residual, Tensor) and x.dtype != residual.dtype and _autocast_dtype(x) is not None:
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
    total, normed, *_ = _call(ops, ops.add_norm, (x, residual, weight, bias), options, returned=2)
    return x if residual is None else total, normed


def _call(ops, op: Callable, inputs: Sequence[Tensor | None], options: dict, returned: int = 1):
    """Calls an op, of whose outputs the first `returned` are wanted, though more may come back. What needs no gradient
    skips the autograd layer, which costs a small call more than its kernel."""
    if ops is direct.OPS:
        return gradients.call(op, inputs, options, returned) if _needs_gradient(inputs) else op(*inputs, **options)
    if ops is reference:
        if _autocast_dtype(inputs[0]) is None:
            return op(*inputs, **options)
        with torch.autocast(inputs[0].device.type, enabled=False):  # inputs are cast already
            return op(*inputs, **options)
    return _call_dispatched(op, inputs, options, returned)


def _call_dispatched(op: Callable, inputs: Sequence[Tensor | None], options: dict, returned: int):
    if torch.compiler.is_compiling():
        return op(*inputs, **options)
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in _given(inputs)):
        raise RuntimeError(f"[{op.__name__}] kernels have no forward-mode derivative; expected backend='reference'")
    # The dispatcher would choose another device's function, or the fake, for all of them.
    if any(tensor.is_cpu != inputs[0].is_cpu for tensor in _given(inputs)):
        raise ValueError(f"[{op.__name__}] the tensors are on several devices; expected one device")
    if _needs_gradient(inputs):
        return gradients.call(op, inputs, options, returned)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*inputs, **options)


def _given(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _needs_gradient(tensors: Sequence[Tensor | None]) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def _packed(ops, x: Tensor, *weights: Tensor | None) -> Sequence[Tensor | None]:
    """The weights in the kernels' layout where x's rows make that worth keeping; see ops/packed_weights.py."""
    on_cpu = ops is direct.OPS or ops is backends.CPU_OPS
    if not on_cpu or torch.compiler.is_compiling() or x.numel() <= packed_weights.FEW_ROWS * x.shape[-1]:
        return (None,) * len(weights)
    return [None if w is None or _needs_gradient((w,)) else packed_weights.lookup(w) for w in weights]


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for on x's device, or None when autocast is off."""
    if not (x.is_cpu or x.is_cuda):
        return None
    device = "cpu" if x.is_cpu else "cuda"
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _autocast(dtype: torch.dtype, x: Tensor | None) -> Tensor | None:
    # As torch: floating point only, and float64 is left alone.
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(dtype)


def _autocast_attention(op: str, query: Tensor, key: Tensor, value: Tensor | None, mask: Tensor | None):
    checks.is_tensor(op, "query", query)
    dtype = _autocast_dtype(query)
    if dtype is None:
        return query, key, value, mask
    if isinstance(mask, Tensor) and mask.dtype != torch.float32:  # a float32 mask keeps its range
        mask = _autocast(dtype, mask)
    return _autocast(dtype, query), _autocast(dtype, key), _autocast(dtype, value), mask


def _autocast_linear(op: str, residual: Tensor | None, x: Tensor, *others: Tensor | None):
    """The operands in autocast's dtype, the residual if it is to be added after the op, and if it is to be fused."""
    checks.is_tensor(op, "x", x)
    dtype = _autocast_dtype(x)
    if dtype is None:
        return (x, *others), None, residual
    operands = tuple(_autocast(dtype, operand) for operand in (x, *others))
    if residual is None or residual.dtype == operands[0].dtype:
        return operands, None, residual
    return operands, residual, None


def _score_options(op: str, causal, scale, window, softcap, dropout_p: float) -> dict:
    left, right = (-1, -1) if window is None else checks.window(op, window)
    return {
        "causal": "none" if causal is False else checks.causal(op, causal),
        "scale": None if scale is None else checks.finite(op, "scale", scale),
        "window_left": left,
        "window_right": right,
        "softcap": 0.0 if softcap is None else checks.finite(op, "softcap", softcap, minimum=0),
        "dropout_p": dropout_p,
    }


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _four_dims(*tensors: Tensor) -> list[Tensor]:
    """Tensors [..., heads, length, features], all of the first's dimensions, as [batch, heads, length, features]."""
    dims = tensors[0].dim()
    return [x[(None,) * (4 - dims)] if dims < 4 else x.flatten(0, -4) for x in tensors]


def _mask_of_four_dims(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """A mask that broadcasts to query's scores, with its leading dimensions flattened as the query's are."""
    if mask is None or mask.dim() == 4 >= query.dim():
        return mask
    if mask.dim() < 4:
        return mask[(None,) * (4 - mask.dim())]
    leading = (1,) * (query.dim() - mask.dim()) + mask.shape[:-3]
    if all(size == 1 for size in leading):
        return mask.reshape(1, *mask.shape[-3:])
    return mask.expand(*query.shape[:-3], *mask.shape[-3:]).flatten(0, -4)


def _checked_slopes(op: str, slopes: Tensor | None, query: Tensor) -> Tensor | None:
    if slopes is None:
        return None
    heads = query.shape[-3] if query.dim() > 2 else 1
    batch = query.shape[:-3].numel()
    checks.per_head(op, "alibi_slopes", slopes, query, [(heads,), (batch, heads), (1, heads)])
    checks.no_gradient(op, "alibi_slopes", slopes)
    return slopes.to(_statistics_dtype(query))


def _broadcast_leading(op: str, query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool):
    """Leading dimensions broadcast as torch.matmul's; heads too, unless grouped queries give them another meaning."""
    dims = max(query.dim(), key.dim(), value.dim())
    query, key, value = (x[(None,) * (dims - x.dim())] for x in (query, key, value))
    kept = 3 if enable_gqa else 2
    try:
        leading = torch.broadcast_shapes(*(x.shape[:-kept] for x in (query, key, value)))
    except RuntimeError:
        shapes = ", ".join(str(list(x.shape)) for x in (query, key, value))
        hint = "" if enable_gqa else " (enable_gqa=True groups the query's heads)"
        raise ValueError(
            f"[{op}] query, key and value have shapes {shapes}, whose leading dimensions do not broadcast{hint}"
        ) from None
    return (x.expand(*leading, *x.shape[-kept:]) for x in (query, key, value))


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
