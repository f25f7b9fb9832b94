"""What is tuned: each kind of product and pass of attention, with a call to time and calls to hold against the
reference."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..testing import AttentionCase, AttentionWeightsCase, FeedForwardCase, LinearCase
from ..triton.attention_backward import attention_backward
from ..triton.attention_forward import attention
from ..triton.attention_inputs import padded
from ..triton.attention_weights import attention_weights
from ..triton.feed_forward import run_gated_hidden
from ..triton.feed_forward_backward import run_gate_gradient
from ..triton.linear import NO_DROPOUT, run_linear
from ..triton.linear_backward import run_grad_weight

OPS = ("attention", "attention_weights", "linear", "feed_forward")
# tf32: fp32 tensors with torch's switch for TF32 on. bf16 and fp16 share their launches, and so one measurement.
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}
_ARITHMETIC = {"bf16": "half", "fp16": "half", "fp32": "ieee", "tf32": "tf32"}
_BACKWARD = ("gradient", "derivative", "grad_key_value", "grad_query", "grad_mask")


@dataclass(frozen=True)
class Problem:
    """One launch to choose. launch: the kind of product or the pass of attention; size: as shown to people; features:
    of attention, padded. checks: cases of `testing`, held against the reference; call: makes the tensors on a device
    and gives what is timed."""

    op: str
    dtype: str
    launch: str
    size: str
    features: int | None
    checks: tuple
    call: Callable[[torch.device], Callable[[], object]]

    @property
    def arithmetic(self) -> str:
        return _ARITHMETIC[self.dtype]

    @property
    def differentiates(self) -> bool:
        return self.launch in _BACKWARD

    def __str__(self) -> str:
        return f"{self.op} {self.launch} {self.size} {self.dtype}"


def problems(
    ops: Sequence[str] = OPS,
    dtypes: Sequence[str] = ("bf16",),
    head_dims: Sequence[int] = (64, 128),
    rows: Sequence[int] = (8192,),
    width: int = 4096,
    hidden: int = 16384,
) -> list[Problem]:
    """Every launch that the ops use with these dtypes and sizes: heads of head_dim features; products of so many rows
    (tokens) with weights of width x width (linear) and hidden x width (feed_forward). A product's launch is then used
    for all sizes of the same powers of two. Raises: ValueError for unknown names and sizes that are not positive."""
    for kind, names, known in (("op", ops, OPS), ("dtype", dtypes, DTYPES)):
        for name in names:
            if name not in known:
                raise ValueError(f"[tune] '{name}' is no {kind} that can be tuned; expected one of {', '.join(known)}")
    for name, size in (("head_dim", each) for each in head_dims):
        if not 1 <= size <= 512:
            raise ValueError(f"[tune] {name} is {size}, expected 1 to 512")
    for name, size in (("width", width), ("hidden", hidden), *(("rows", each) for each in rows)):
        if size < 1:
            raise ValueError(f"[tune] {name} is {size}, expected at least 1")
    found: dict[tuple, Problem] = {}
    for dtype in dtypes:
        for each in _all(ops, dtype, head_dims, rows, width, hidden):
            found.setdefault((each.launch, each.arithmetic, each.features or each.size), each)
    return list(found.values())


def _all(ops, dtype: str, head_dims, rows, width: int, hidden: int) -> Iterator[Problem]:
    for head_dim in head_dims:
        if "attention" in ops:
            for name in ("forward", "grad_key_value", "grad_query", "grad_mask"):
                yield _attention(name, dtype, head_dim)
        if "attention_weights" in ops:
            yield _attention("weights", dtype, head_dim)
    for tokens in rows:
        if "linear" in ops:
            for kind in ("plain", "epilogue"):
                yield _product("linear", kind, dtype, tokens, width, width)
            yield _product("linear", "derivative", dtype, width, width, tokens)
        if "feed_forward" in ops:
            for kind in ("epilogue", "pair", "gradient"):
                yield _product("feed_forward", kind, dtype, tokens, hidden, width)
            for kind in ("plain", "epilogue"):
                yield _product("feed_forward", kind, dtype, tokens, width, hidden)
            yield _product("feed_forward", "derivative", dtype, hidden, width, tokens)
            yield _product("feed_forward", "derivative", dtype, width, hidden, tokens)


def _product(op: str, kind: str, dtype: str, m: int, n: int, k: int) -> Problem:
    """Checked on a size that every block divides and on one that none does."""
    if kind in ("plain", "epilogue", "derivative"):
        activation = None if kind == "plain" else "gelu"
        checks = tuple(
            LinearCase(f"{a}", (a,), b, c, activation=activation, residual=kind == "epilogue")
            for a, b, c in ((256, 256, 256), (201, 161, 137))
        )
    else:
        gate = "hidden" if kind == "pair" else None
        checks = tuple(
            FeedForwardCase(f"{a}", (a,), b, c, activation="silu", gate=gate)
            for a, b, c in ((256, 256, 256), (201, 161, 137))
        )
    return Problem(op, dtype, kind, f"{m}x{n}x{k}", None, checks, partial(product_call, kind, DTYPES[dtype], m, n, k))


def _attention(name: str, dtype: str, head_dim: int) -> Problem:
    """Checked plainly, and with everything that costs registers or memory beside the products, either mask among it."""
    even = AttentionCase("even", batch=1, heads=2, q_len=256, kv_len=256, head_dim=head_dim)
    odd = AttentionCase(
        "odd",
        batch=1,
        heads=4,
        kv_heads=2,
        q_len=201,
        kv_len=333,
        head_dim=head_dim,
        mask="float",
        causal="bottom_right",
        softcap=20.0,
        alibi="heads",
        dropout_p=0.2,
    )
    checks = (even, odd)
    if name != "grad_mask":  # there is no gradient of a boolean mask
        # Its tiles are loaded as far ahead as those of keys and values: what an additive mask is kept from.
        checks += (replace(odd, name="boolean", mask="bool"),)
    if name == "weights":
        checks = tuple(AttentionWeightsCase(each) for each in checks)
    call = partial(attention_call, name, DTYPES[dtype], head_dim)
    op = "attention_weights" if name == "weights" else "attention"
    return Problem(op, dtype, name, f"head_dim {head_dim}", padded(head_dim), checks, call)


def _random(dtype: torch.dtype, device: torch.device, *shape: int) -> Tensor:
    """Numbers of a realistic spread: a device draws less power, and runs faster, on zeros."""
    return torch.randn(shape, device=device, dtype=torch.float32).to(dtype)


def product_call(kind: str, dtype: torch.dtype, m: int, n: int, k: int, device: torch.device) -> Callable[[], object]:
    """A product [m, k] x [k, n] as its launcher runs it."""
    new = partial(_random, dtype, device)
    if kind == "derivative":  # of a weight [m, n], from k tokens
        grad, x = new(k, m), new(k, n)
        return lambda: run_grad_weight(grad, None, x, "none", True, True)
    x, weight = new(m, k), new(n, k)
    if kind == "pair":
        hidden_weight = new(n, k)
        return lambda: run_gated_hidden(x, weight, None, hidden_weight, None, "silu", NO_DROPOUT, None, None)
    if kind == "gradient":
        weight, argument, factor = new(k, n), new(m, n), new(m, n)
        return lambda: run_gate_gradient(x, weight, argument, factor, "silu")
    bias = new(n)
    return lambda: run_linear(x, weight, bias, activation="gelu" if kind == "epilogue" else "none")


def attention_call(
    name: str,
    dtype: torch.dtype,
    head_dim: int,
    device: torch.device,
    batch: int = 4,
    heads: int = 16,
    length: int = 4096,
) -> Callable[[], object]:
    """A pass over self-attention, without and with a causal mask, one after the other."""
    query, key, value = (_random(dtype, device, batch, heads, length, head_dim) for _ in range(3))
    if name == "forward":
        return lambda: [attention(query, key, value, causal=causal) for causal in ("none", "top_left")]
    mask = _random(dtype, device, 1, heads, length, length) if name == "grad_mask" else None
    saved = {causal: attention(query, key, value, mask, causal=causal) for causal in ("none", "top_left")}
    if name == "weights":
        query, key = query[:1], key[:1]  # its result is quadratic in the length
        return lambda: [attention_weights(query, key, lse[:1], causal=causal) for causal, (_, lse) in saved.items()]
    grad = _random(dtype, device, *value.shape)
    wanted = {
        "grad_key_value": (False, True, True, False, False),
        "grad_query": (True, False, False, False, False),
        "grad_mask": (False, False, False, True, False),
    }[name]

    def backward() -> list:
        return [
            attention_backward(grad, None, query, key, value, output, lse, mask, causal=causal, output_mask=wanted)
            for causal, (output, lse) in saved.items()
        ]

    return backward
