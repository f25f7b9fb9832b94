"""What the functions of functional check of their arguments, whatever the backend.

Every error begins with the op's name in brackets. Shape, dtype and value errors are ValueError; an argument of the
wrong type is a TypeError.
"""

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
GATES = ("none", "input", "hidden")
NORM_KINDS = ("layer", "rms")
_REAL = (float, int, numbers.Real)  # the abstract class last, which takes long to ask
CAUSAL = {False: "none", True: "top_left", None: "none", "top_left": "top_left", "bottom_right": "bottom_right"}


def is_tensor(op: str, name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"[{op}] {name} is {_type_name(value)}; expected a tensor")


def tensors(
    op: str,
    names: Sequence[str],
    values: Sequence[Tensor | None],
    optional: int | None = None,
    same_dtype: bool = True,
) -> None:
    """All are dense floating point tensors on one device and, if asked, of one dtype; those from `optional` on may be
    None.
    """
    first = values[0]
    is_tensor(op, names[0], first)
    dtype, on_cpu = first.dtype, first.is_cpu
    if not first.is_floating_point():
        raise ValueError(f"[{op}] {names[0]} has dtype {dtype}; expected floating point")
    for index, value in enumerate(values):
        if value is None and optional is not None and index >= optional:
            continue
        is_tensor(op, names[index], value)
        # Comparing devices costs ten times as much as is_cpu.
        if value.is_cpu != on_cpu or (not on_cpu and value.device != first.device):
            raise ValueError(
                f"[{op}] {names[index]} is on {value.device}, {names[0]} on {first.device}; expected one device"
            )
        if same_dtype and value.dtype != dtype:
            raise ValueError(f"[{op}] {names[index]} has dtype {value.dtype}, {names[0]} {dtype}; expected one dtype")
        if value.layout != torch.strided or value.is_nested:
            raise ValueError(f"[{op}] {names[index]} is nested or sparse; expected a dense tensor")


def shape(op: str, name: str, value: Tensor | None, expected: tuple[int, ...]) -> None:
    """A present tensor has exactly the expected shape."""
    if value is not None and value.shape != expected:
        raise ValueError(f"[{op}] {name} has shape {list(value.shape)}; expected {list(expected)}")


def weight(op: str, name: str, value: Tensor, out_features: int | None, in_features: int) -> None:
    """A weight [out_features, in_features] of at least one element; None for out_features accepts any."""
    found = value.shape
    if len(found) != 2 or found[1] != in_features or found[0] < 1 or out_features not in (None, found[0]):
        rows = "out_features" if out_features is None else out_features
        raise ValueError(f"[{op}] {name} has shape {list(found)}; expected [{rows}, {in_features}]")


def has_features(op: str, name: str, value: Tensor) -> None:
    """The last dimension exists and is not empty."""
    if value.dim() < 1 or value.shape[-1] < 1:
        raise ValueError(f"[{op}] {name} has shape {list(value.shape)}; expected [..., features] with features >= 1")


def norm_parameter(op: str, name: str, value: Tensor | None, x: Tensor) -> None:
    """The weight or bias of a normalisation of x [..., width]: [width], in x's dtype or float32."""
    if value is None:
        return
    is_tensor(op, name, value)
    if value.device != x.device:
        raise ValueError(f"[{op}] {name} is on {value.device}, x on {x.device}; expected one device")
    if value.dtype not in (x.dtype, torch.float32):
        raise ValueError(f"[{op}] {name} has dtype {value.dtype}; expected float32 or x's dtype, {x.dtype}")
    shape(op, name, value, x.shape[-1:])


def memory_of_its_own(op: str, name: str, value: Tensor | None) -> None:
    """A tensor that is written in place holds no two elements in one place: every stride reaches beyond what smaller
    ones span. Of the tensors that do not, torch's own ops refuse those with a stride of 0.
    """
    if value is None or value.is_contiguous() or value.numel() == 0:
        return
    steps = [(size, stride) for size, stride in zip(value.shape, value.stride(), strict=True) if size > 1]
    for at, (_, stride) in enumerate(steps):
        others = steps[:at] + steps[at + 1 :]
        if stride <= sum((size - 1) * other for size, other in others if other <= stride):
            raise ValueError(
                f"[{op}] {name} has shape {list(value.shape)} and strides {list(value.stride())}, whose elements share "
                "memory; expected memory of its own for each, since they are written"
            )


def choice(op: str, name: str, value: str, choices: Sequence[str]) -> None:
    """An option is one of a few words."""
    if value not in choices:
        raise ValueError(f"[{op}] {name} is {value!r}; expected one of {', '.join(choices)}")


def dropout(op: str, dropout_p: float, seed: Tensor | None) -> None:
    """A probability in [0, 1), and a seed that, if given, is one int64."""
    if not isinstance(dropout_p, int | float) or not 0 <= dropout_p < 1:
        raise ValueError(f"[{op}] dropout_p is {dropout_p!r}; expected a number with 0 <= dropout_p < 1")
    if seed is None:
        return
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64 or seed.dim() != 0:
        found = f"{seed.dtype}, {seed.dim()} dimensions" if isinstance(seed, Tensor) else _type_name(seed)
        raise ValueError(f"[{op}] dropout_seed is {found}; expected an int64 tensor of 0 dimensions")


def attention_tensors(op: str, query: Tensor, key: Tensor, value: Tensor | None) -> None:
    """query [..., heads, q_len, head_dim] against key and value [..., kv_heads, kv_len, head_dim or value_dim]."""
    if value is None:
        tensors(op, ("query", "key"), (query, key))
    else:
        tensors(op, ("query", "key", "value"), (query, key, value))
    query_shape, key_shape = query.shape, key.shape
    dims = len(query_shape)
    if dims < 2:
        raise ValueError(f"[{op}] query has shape {list(query_shape)}; expected [..., heads, q_len, head_dim]")
    if query_shape[-1] < 1:
        raise ValueError(f"[{op}] query has head_dim 0; expected at least 1")
    if len(key_shape) != dims or key_shape[-1] != query_shape[-1] or key_shape[:-3] != query_shape[:-3]:
        raise ValueError(
            f"[{op}] key has shape {list(key_shape)}, query {list(query_shape)}: "
            "expected the same leading dimensions and head_dim"
        )
    heads, kv_heads = (query_shape[-3], key_shape[-3]) if dims > 2 else (1, 1)
    grouped_heads(op, "key", heads, kv_heads)
    if value is None:
        return
    if value.shape[:-1] != key_shape[:-1] or value.shape[-1] < 1:
        raise ValueError(
            f"[{op}] value has shape {list(value.shape)}; expected {[*key_shape[:-1], 'value_dim']} as key has, "
            "with value_dim at least 1"
        )


def grouped_heads(op: str, name: str, heads: int, kv_heads: int) -> None:
    """Every head of keys serves as many heads of queries."""
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads != 0):
        raise ValueError(
            f"[{op}] {name} has {kv_heads} heads, query {heads}: query heads must be a multiple of key heads"
        )


def mask(op: str, value: Tensor | None, query: Tensor, kv_len: int) -> None:
    """A boolean or additive mask that broadcasts to the scores [..., heads, q_len, kv_len]."""
    if value is not None:
        mask_of_scores(op, value, query, (*query.shape[:-1], kv_len))


def mask_of_scores(op: str, value: Tensor, query: Tensor, scores: tuple[int, ...]) -> None:
    """A boolean or additive mask that broadcasts to scores of a shape."""
    is_tensor(op, "mask", value)
    if value.device != query.device:
        raise ValueError(f"[{op}] mask is on {value.device}, query on {query.device}; expected one device")
    if value.dtype not in (torch.bool, torch.float32, query.dtype):
        raise ValueError(
            f"[{op}] mask has dtype {value.dtype}; expected bool (True: may attend), float32 or the query's dtype, "
            f"{query.dtype}"
        )
    fits = value.dim() <= len(scores) and all(
        size in (1, whole) for size, whole in zip(reversed(value.shape), reversed(scores), strict=False)
    )
    if not fits:
        raise ValueError(f"[{op}] mask has shape {list(value.shape)}; expected one that broadcasts to {list(scores)}")


def per_head(op: str, name: str, value: Tensor, query: Tensor, shapes: Sequence[tuple[int, ...]]) -> None:
    """ALiBi slopes, sinks or the lse: floating point, of one of a few shapes."""
    is_tensor(op, name, value)
    if not value.is_floating_point():
        raise ValueError(f"[{op}] {name} has dtype {value.dtype}; expected floating point")
    if value.device != query.device:
        raise ValueError(f"[{op}] {name} is on {value.device}, query on {query.device}; expected one device")
    _one_of(op, name, value, shapes)


def _one_of(op: str, name: str, value: Tensor, shapes: Sequence[tuple[int, ...]]) -> None:
    # Size by size: torch.compile, where sizes are symbols, takes no other comparison of shapes.
    def equals(shape: tuple[int, ...]) -> bool:
        return value.dim() == len(shape) and all(a == b for a, b in zip(value.shape, shape, strict=True))

    if not any(equals(shape) for shape in shapes):
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"[{op}] {name} has shape {list(value.shape)}; expected {expected}")


def integers(op: str, name: str, value: Tensor, other: Tensor, shapes: Sequence[tuple[int, ...]]) -> None:
    """An int64 tensor beside `other`, of one of a few shapes."""
    is_tensor(op, name, value)
    if value.dtype != torch.int64:
        raise ValueError(f"[{op}] {name} has dtype {value.dtype}; expected torch.int64")
    if value.device != other.device:
        raise ValueError(
            f"[{op}] {name} is on {value.device}, the first argument on {other.device}; expected one device"
        )
    _one_of(op, name, value, shapes)


def no_gradient(op: str, name: str, value: Tensor | None) -> None:
    """An input that has no gradient formula must not ask for one."""
    if value is not None and value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"[{op}] {name} requires a gradient, which is not implemented; pass {name}.detach()")


def causal(op: str, value: bool | str | None) -> str:
    """The op's word for a causal argument."""
    if not isinstance(value, bool | str | None) or value not in CAUSAL:
        raise ValueError(f"[{op}] causal is {value!r}; expected False, True, 'top_left' or 'bottom_right'")
    return CAUSAL[value]


def window(op: str, value: Sequence[int | None] | None) -> tuple[int, int]:
    """(left, right), -1 where unbounded."""
    if value is None:
        return -1, -1
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"[{op}] window is {value!r}; expected (left, right) or None")
    for side in value:
        if side is not None and (isinstance(side, bool) or not isinstance(side, int) or side < -1):
            raise ValueError(f"[{op}] window is {value!r}; expected integers >= 0, or None or -1 for unbounded")
    left, right = value
    return -1 if left is None else left, -1 if right is None else right


def finite(op: str, name: str, value: float, minimum: float = -math.inf, maximum: float = math.inf) -> float:
    """A finite real number, numpy's too, that is not below a minimum or above a maximum."""
    number = isinstance(value, _REAL) and not isinstance(value, bool)
    # Compared, not math.isfinite: torch.compile(dynamic=True) can trace a comparison.
    if not number or not -math.inf < value < math.inf or value < minimum or value > maximum:
        at_least = "" if minimum == -math.inf else f" of at least {minimum:g}"
        at_most = "" if maximum == math.inf else f" and at most {maximum:g}"
        raise ValueError(f"[{op}] {name} is {value!r}; expected a finite number{at_least}{at_most}")
    return float(value)


def _type_name(value: object) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
