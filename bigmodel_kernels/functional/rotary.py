"""Rotary position embedding."""

import torch
from torch import Tensor

from .. import backends, checks
from ..ops import direct, repeats
from .calls import call, needs_gradient, straight_to_kernels


@repeats.repeated
def rotary(
    query: Tensor,
    key: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: bool = False,
    inverse: bool = False,
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Turns pairs of each head's features by an angle of their position: (a, b) -> (a cos - b sin, b cos + a sin).

    Args:
        query: [batch, heads, length, head_dim]; float32, bfloat16 or float16 (float64 runs on the reference).
        key: [batch, kv_heads, length, head_dim] in query's dtype, or None.
        cos, sin: of the angles, in query's dtype or float32: a table [rows, pairs], of which `positions` says the rows,
            or [batch, length, pairs], a row for each token. 2 * pairs may be less than head_dim: the features that are
            left over are copied. `bmk.nn.RotaryEmbedding` makes tables. No gradient.
        positions: [length] or [batch, length] in int64: each token's row in a table; None: 0, 1, 2, ...
        interleaved: False pairs feature i with i + pairs (GPT-NeoX, Llama as Hugging Face keeps it), True 2 i with
            2 i + 1 (RoFormer, GPT-J).
        inverse: turns by the negative angle, which undoes a turn.
        inplace: writes the results over query and key, which need memory of their own for every element, and returns
            these.
        backend: a backend's name (see `use_backend`), or None.

    Returns: (query, key), turned; key is None if it was.

    Source: Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021.
    """
    straight = straight_to_kernels(query, backend)
    if not straight:
        _check(query, key, cos, sin, positions)
        if inplace:
            checks.memory_of_its_own("rotary", "query", query)
            checks.memory_of_its_own("rotary", "key", key)
    checks.no_gradient("rotary", "cos", cos)
    checks.no_gradient("rotary", "sin", sin)
    ops = direct.OPS if straight else backends.resolve_for("rotary", query, backend)
    inputs = (query, key, cos, sin, positions)
    options = {"interleaved": bool(interleaved), "inverse": bool(inverse)}
    if inplace:
        return _in_place(ops, inputs, options)
    turned_query, *turned_key = call(ops, ops.rotary, inputs, options, returned=1 if key is None else 2)
    return turned_query, None if key is None else turned_key[0]


def _in_place(ops, inputs: tuple[Tensor | None, ...], options: dict) -> tuple[Tensor, Tensor | None]:
    turned = [x for x in inputs[:2] if x is not None]
    if torch.compiler.is_compiling():  # which removes the copies
        for x, y in zip(turned, ops.rotary(*inputs, **options), strict=False):
            x.copy_(y)
        return inputs[0], inputs[1]
    if needs_gradient(turned):
        repeats.current.straight = False  # what writes must not be called again
        for name, x in zip(("query", "key"), inputs, strict=False):
            if x is not None and x.is_leaf and x.requires_grad:
                raise ValueError(f"[rotary] {name} is a leaf that requires a gradient; expected inplace=False")
        ops = backends.CPU_OPS if ops is direct.OPS else ops
        query, key = (None if x is None else _InPlace.apply(x, *inputs[2:], ops, options) for x in inputs[:2])
        return query, key
    with torch.no_grad():
        call(ops, ops.rotary_, inputs, options)
    torch.autograd.graph.increment_version(turned)
    return inputs[0], inputs[1]


class _InPlace(torch.autograd.Function):
    """Of one tensor: torch lets a Function that writes to a view return nothing else."""

    @staticmethod
    def forward(ctx, x, cos, sin, positions, ops, options):
        call(ops, ops.rotary_, (x, None, cos, sin, positions), options)
        ctx.mark_dirty(x)
        ctx.save_for_backward(cos, sin, positions)
        ctx.ops, ctx.options = ops, {**options, "inverse": not options["inverse"]}
        return x

    @staticmethod
    def backward(ctx, grad):
        cos, sin, positions = ctx.saved_tensors
        turned, *_ = call(ctx.ops, ctx.ops.rotary, (grad, None, cos, sin, positions), ctx.options, returned=1)
        return turned, None, None, None, None, None


def _check(query: Tensor, key: Tensor | None, cos: Tensor, sin: Tensor, positions: Tensor | None) -> None:
    checks.tensors("rotary", ("query", "key"), (query, key), optional=1)
    if query.dim() != 4:
        raise ValueError(f"[rotary] query has shape {list(query.shape)}; expected [batch, heads, length, head_dim]")
    batch, _, length, head_dim = query.shape
    if key is not None and (key.dim() != 4 or (key.shape[0], *key.shape[2:]) != (batch, length, head_dim)):
        raise ValueError(
            f"[rotary] key has shape {list(key.shape)}; expected {[batch, 'kv_heads', length, head_dim]} as query has"
        )
    checks.tensors("rotary", ("query", "cos", "sin"), (query, cos, sin), same_dtype=False)
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dtype not in (query.dtype, torch.float32) or table.dtype != cos.dtype:
            raise ValueError(
                f"[rotary] {name} has dtype {table.dtype}; expected float32 or query's dtype, {query.dtype}, for both"
            )
        rows = table.dim() == 2 and (positions is not None or table.shape[0] >= length)
        tokens = table.dim() == 3 and positions is None and table.shape[:2] == (batch, length)
        if not (rows or tokens) or table.shape != cos.shape:
            expected = (
                "[rows, pairs]" if positions is not None else f"[{length} or more, pairs] or {[batch, length]} x pairs"
            )
            raise ValueError(f"[rotary] {name} has shape {list(table.shape)}; expected {expected}, cos and sin alike")
    if not 1 <= cos.shape[-1] <= head_dim // 2:
        raise ValueError(f"[rotary] cos has {cos.shape[-1]} pairs; expected 1 to {head_dim // 2}, half of head_dim")
    if positions is not None:
        checks.integers("rotary", "positions", positions, query, [(length,), (batch, length)])
