"""warm_up: compiles the kernels that a program is going to call before it calls them."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from . import backends, functional

# How each op is called where the caller does not say.
_OPTIONS = {
    "attention": ({}, {"causal": True}),
    "attention_weights": ({},),
    "attention_varlen": ({}, {"causal": True}),
    "linear": ({},),
    "feed_forward": ({"activation": "gelu"}, {"activation": "silu", "gate": "hidden"}),
    "add_norm": ({"kind": "layer"}, {"kind": "rms"}),
    "rotary": ({}, {"interleaved": True}),
    "attention_decode": ({},),
    "linear_cross_entropy": ({},),
}


def warm_up(
    *ops: str,
    dtypes: torch.dtype | Sequence[torch.dtype] = torch.bfloat16,
    head_dims: int | Sequence[int] = 64,
    batch: int = 2,
    heads: int = 16,
    kv_heads: int | None = None,
    lengths: Sequence[tuple[int, int]] = ((1024, 1024),),
    width: int = 1024,
    hidden: int = 4096,
    options: Mapping[str, Sequence[Mapping]] | None = None,
    backward: bool = True,
    device: torch.device | str | None = None,
    backend: str | None = None,
    progress: bool | None = None,
) -> int:
    """Calls ops once on random numbers, so that Triton compiles their kernels now and not during the first step.

    Nothing is timed or chosen: the launches are those that later calls use (`bigmodel tune` looks for others). Triton
    keeps what it compiled on disk too, so that a second process only loads it. It compiles a kernel anew for other
    dtypes, head sizes and options and, among sizes and strides, for 1, multiples of 16 and all others: give the sizes
    of your calls. A model with sizes of many kinds is warmed best by one step on a real batch.

    Args:
        ops: names, as "attention"; without any, all of attention, attention_weights, attention_varlen, linear,
            feed_forward, add_norm, rotary, attention_decode and linear_cross_entropy.
        dtypes, head_dims: one or several; each dtype is called with each head size.
        batch, heads, kv_heads, lengths: of attention: query [batch, heads, q_len, head_dim], key and value [batch,
            kv_heads or heads, kv_len, head_dim] for each (q_len, kv_len) of lengths; attention_varlen packs as many
            sequences of these lengths, rotary's keys have q_len tokens, and attention_decode's cache kv_len before the
            call.
        width, hidden: of the other ops, whose input is [batch, q_len, width]: linear's weight is [width, width],
            feed_forward's are [hidden, width] and [width, hidden], linear_cross_entropy's is [hidden, width].
        options: by op, the keyword arguments of each call; by default attention and attention_varlen plain and
            causal, feed_forward with GELU and as SwiGLU, add_norm as LayerNorm and RMSNorm, rotary both ways.
        backward: the gradients' kernels too.
        device: by default "cuda" where torch sees a device, else "cpu".
        backend: as every op takes it; by default chosen automatically.
        progress: whether to show a bar on stderr; by default where that is a terminal.
    Returns: how many calls were made; 0 where the backend has nothing to compile, as on the CPU.
    Raises: ValueError for an unknown op, or options of an op that is not called; RuntimeError, with the reasons, for a
        named backend that cannot run; and what an op itself raises.
    """
    names = ops or tuple(_OPTIONS)
    _check(names, options or {})
    chosen = {**_OPTIONS, **(options or {})}
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtypes = (dtypes,) if isinstance(dtypes, torch.dtype) else tuple(dtypes)
    head_dims = (head_dims,) if isinstance(head_dims, int) else tuple(head_dims)
    sizes = (batch, heads, heads if kv_heads is None else kv_heads)
    calls = []
    for name in names:
        for dtype in dtypes:
            if backends.resolve(name, place, dtype, backend) is not backends.TRITON_OPS:
                continue
            make = functools.partial(torch.randn, device=place, dtype=dtype)
            if name in ("attention", "attention_weights", "attention_varlen", "rotary", "attention_decode"):
                tensors = [
                    functools.partial(_attention_tensors, name, make, *sizes, *pair, head_dim)
                    for head_dim in head_dims
                    for pair in lengths
                ]
            else:
                tensors = [functools.partial(_tensors, name, make, batch, q_len, width, hidden) for q_len, _ in lengths]
            label = f"{name} {str(dtype).removeprefix('torch.')}"
            calls += [(label, name, each, given) for each in tensors for given in chosen[name]]
    for _, name, tensors, given in _shown(calls, progress):
        gradients = backward and name != "attention_decode"  # which has none
        _call(getattr(functional, name), tensors(given), {**given, "backend": backend}, gradients)
    return len(calls)


def _check(names: Sequence[str], options: Mapping) -> None:
    for name in names:
        if name not in _OPTIONS:
            raise ValueError(f"[warm_up] '{name}' is not an op; expected one of {', '.join(_OPTIONS)}")
    for name in options:
        if name not in names:
            raise ValueError(f"[warm_up] options has '{name}'; expected only ops that are called: {', '.join(names)}")


def _shown(calls: list[tuple], progress: bool | None) -> Iterator[tuple]:
    """The calls, with a bar of how many are done."""
    console = Console(stderr=True)
    columns = TextColumn("compiling {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    shown = console.is_terminal if progress is None else progress
    with Progress(*columns, console=console, transient=console.is_terminal, disable=not shown) as bar:
        task = bar.add_task("", total=len(calls))
        for call in calls:
            bar.update(task, description=call[0])
            yield call
            bar.advance(task)


def _call(function: Callable, tensors: Mapping[str, Tensor], options: Mapping, backward: bool) -> None:
    """One call, with gradients of all tensors that have one."""
    fixed = ("cos", "sin", "cu_seqlens_q", "cu_seqlens_k", "target")
    wanted = [x.requires_grad_() for name, x in tensors.items() if backward and name not in fixed]
    with torch.set_grad_enabled(backward):
        outputs = function(**tensors, **options)
        if backward:
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            torch.autograd.grad(outputs, wanted, [torch.randn_like(x) for x in outputs])


def _attention_tensors(
    name: str, make: Callable, batch: int, heads: int, kv_heads: int, q_len: int, kv_len: int, head_dim: int, given
) -> dict[str, Tensor]:
    if name == "rotary":
        angles = [torch.rand(q_len, head_dim // 2, device=make(0).device) for _ in range(2)]
        tensors = {"query": make(batch, heads, q_len, head_dim), "key": make(batch, kv_heads, q_len, head_dim)}
        return tensors | {"cos": angles[0].cos(), "sin": angles[1].sin()}
    if name == "attention_decode":
        caches = {f"{each}_cache": make(batch, kv_heads, kv_len + q_len, head_dim) for each in ("key", "value")}
        new = {f"new_{each}": make(batch, kv_heads, q_len, head_dim) for each in ("key", "value")}
        lengths = torch.full((batch,), kv_len, device=make(0).device)
        return {"query": make(batch, heads, q_len, head_dim), **caches, "cache_lengths": lengths, **new}
    if name == "attention_varlen":
        shapes = {"query": (q_len, heads), "key": (kv_len, kv_heads), "value": (kv_len, kv_heads)}
        packed = {each: make(batch * length, count, head_dim) for each, (length, count) in shapes.items()}
        starts = torch.arange(batch + 1, dtype=torch.int32, device=make(0).device)
        return packed | {"cu_seqlens_q": starts * q_len, "cu_seqlens_k": starts * kv_len}
    tensors = {"query": make(batch, heads, q_len, head_dim), "key": make(batch, kv_heads, kv_len, head_dim)}
    if name == "attention":
        return tensors | {"value": make(batch, kv_heads, kv_len, head_dim)}
    return tensors | {"lse": torch.zeros(batch, heads, q_len, device=tensors["query"].device)}


def _tensors(name: str, make: Callable, batch: int, length: int, width: int, hidden: int, given) -> dict[str, Tensor]:
    x = make(batch, length, width)
    if name == "linear":
        return {"x": x, "weight": make(width, width), "bias": make(width)}
    if name == "linear_cross_entropy":
        target = torch.zeros(batch, length, dtype=torch.int64, device=x.device)
        return {"hidden": x, "weight": make(hidden, width), "target": target}
    if name == "add_norm":
        parameters = {"weight": make(width)} | ({"bias": make(width)} if given.get("kind", "layer") == "layer" else {})
        return {"x": x, "residual": make(batch, length, width), **parameters}
    tensors = {"x": x, "w1": make(hidden, width), "b1": make(hidden), "w2": make(width, hidden), "b2": make(width)}
    if given.get("gate") is not None:
        rows = hidden if given["gate"] == "hidden" else width
        tensors |= {"w_gate": make(rows, width), "b_gate": make(rows)}
    return tensors
