"""attention_backward, and the launches of the gradients that it shares with attention_weights_backward."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .attention_gradient import (
    Incoming,
    Terms,
    grad_key_value_kernel,
    grad_query_kernel,
    grad_sinks_kernel,
    row_terms_kernel,
)
from .attention_inputs import Features, Inputs, View, empty_in_order_of, needs_wide, padded, prepare, view
from .attention_launch import (
    Call,
    Device,
    Launch,
    arithmetic_of,
    attention_launch,
    device_of,
    features_at_a_time,
    heads_per_section,
    is_crowded,
    max_registers,
)
from .attention_mask_gradient import grad_mask_kernel
from .packed_sequences import flat, most_tiles, ordered, row_batches


class Gradients(NamedTuple):
    """Where gradients go; None for one that is not computed. lse: that of the lse as an input, of attention_weights."""

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    mask: Tensor | None = None
    sinks: Tensor | None = None
    lse: Tensor | None = None


def attention_backward(
    grad_output: Tensor | None,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_seed: Tensor | None = None,
    *,
    causal: str = "none",
    scale: float | None = None,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    dropout_p: float = 0.0,
    output_mask: tuple[bool, bool, bool, bool, bool] = (True, True, True, False, False),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value, mask and sinks, those that output_mask asks for and that exist.

    Shapes and options are those of attention; output, lse are its results and grad_output, grad_lse their gradients,
    either of which may be None. A gradient is of the shape and dtype of its tensor; one that is not computed comes back
    with zero elements. Raises: ValueError for shapes, dtypes or options that do not fit together.
    """
    inputs, features = prepare(
        "attention_backward",
        query,
        key,
        value,
        mask,
        alibi_slopes,
        sinks,
        dropout_seed,
        causal=causal,
        scale=scale,
        window_left=window_left,
        window_right=window_right,
        softcap=softcap,
        dropout_p=dropout_p,
    )
    grads = Gradients(
        query=empty_in_order_of(query, query.shape[3]) if output_mask[0] else None,
        key=empty_in_order_of(key, key.shape[3]) if output_mask[1] else None,
        value=empty_in_order_of(value, value.shape[3]) if output_mask[2] else None,
        mask=empty_mask_gradient(mask, output_mask[3]),
        sinks=sinks.new_empty(sinks.shape) if output_mask[4] and sinks is not None else None,
    )
    if lse.numel() == 0 or key.shape[2] == 0:
        zero(grads)
        if grads.sinks is not None and grad_lse is not None and lse.numel():
            grads.sinks.copy_(grad_lse.sum((0, 2)))  # without keys the lse is the sink itself
    else:
        if grad_output is None and grads.value is not None:
            grads.value.zero_()  # the lse does not depend on the values
        incoming = Incoming(Terms(*empty_row_terms(query)), view(grad_output), view(None))
        terms = (output, grad_output, lse, grad_lse)
        source = "lse" if grad_output is None else "output"
        run_gradients(inputs, features, incoming, source, terms, grads)
    nothing = query.new_empty(0)
    return tuple(nothing if grad is None else grad for grad in grads[:5])


def empty_mask_gradient(mask: Tensor | None, want: bool) -> Tensor | None:
    exists = want and mask is not None and mask.dtype != torch.bool
    return mask.new_empty(mask.shape) if exists else None


def empty_row_terms(query: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the lse and delta of Terms."""
    return tuple(query.new_empty(query.shape[:3], dtype=torch.float32) for _ in range(2))


def zero(grads: Gradients) -> None:
    """Without queries or without keys there is no weight, and nothing depends on anything."""
    for grad in grads:
        if grad is not None:
            grad.zero_()


def run_gradients(
    inputs: Inputs, features: Features, incoming: Incoming, source: str, terms: tuple, grads: Gradients
) -> None:
    """Computes the gradients that are not None; there is at least one query and one key. terms: (output, grad_output,
    lse, grad_lse), of which only the lse must be there. source: incoming's, as its class says."""
    device = device_of(incoming.terms.lse)
    parts = None if grads.mask is None else mask_parts(inputs, features, grads.mask, device)
    for call in gradient_calls(inputs, features, incoming, source, terms, grads, parts, device):
        call.run()
    if parts is not None and parts is not grads.mask:
        shared = [dim for dim in (2, 3) if grads.mask.shape[dim] == 1]
        grads.mask.copy_(parts.sum(shared, keepdim=True))


def gradient_calls(
    inputs: Inputs,
    features: Features,
    incoming: Incoming,
    source: str,
    terms: tuple,
    grads: Gradients,
    parts: Tensor | None,
    device: Device,
) -> list[Call]:
    """The launches of run_gradients; parts is what mask_parts gave."""
    sizes = inputs.sizes
    kv_heads, batches = sizes.heads // sizes.group, row_batches(sizes, features)
    blocks = (padded(sizes.head_dim), padded(sizes.value_dim))
    calls = [_row_terms_call(incoming, terms, flat(sizes, features), blocks[1])]
    arithmetic = arithmetic_of(inputs.query.data.dtype, features.precision)
    crowded = _crowded(inputs, features)
    features = features._replace(
        wide=features.wide or needs_wide(incoming.output, sizes.kv_len),
        chunk=features_at_a_time(device, max(blocks), arithmetic),
        crowded=crowded or sizes.group > 1,
    )
    element = inputs.query.data.element_size()

    def launch(name: str) -> Launch:
        return _launch(name, inputs, features, device)

    def add(name: str, kernel, grid: tuple, arguments: tuple, chosen: Launch) -> None:
        arguments += (chosen.block_m, chosen.block_n, *blocks)
        registers = max_registers(name, device, max(blocks), arithmetic, crowded, features.dropout)
        calls.append(Call(name, kernel, grid, arguments, chosen.num_warps, chosen.num_stages, registers))

    if grads.key is not None or (grads.value is not None and source == "output"):
        chosen = launch("grad_key_value")
        heads = batches * kv_heads
        of_pass, before = ordered(inputs, features, chosen.block_n, keys=True)
        section = heads_per_section(heads, sizes.group * sizes.q_len * sum(blocks) * element, 1, device)
        arguments = (of_pass, incoming, view(grads.key), view(grads.value), section, features, source)
        arguments += (grads.key is not None, grads.value is not None and source == "output")
        grid = (most_tiles(sizes, features, sizes.kv_len, chosen.block_n) * kv_heads,)
        calls += before
        add("grad_key_value", grad_key_value_kernel, grid, arguments, chosen)
    if grads.query is not None or grads.lse is not None:
        chosen = launch("grad_query")
        heads = batches * sizes.heads
        of_pass, before = ordered(inputs, features, chosen.block_m)
        section = heads_per_section(heads, sizes.kv_len * sum(blocks) * element, sizes.group, device)
        arguments = (of_pass, incoming, view(grads.query), grads.lse, section, features, source)
        grid = (most_tiles(sizes, features, sizes.q_len, chosen.block_m) * sizes.heads,)
        calls += before
        add("grad_query", grad_query_kernel, grid, arguments, chosen)
    if grads.mask is not None:
        chosen = launch("grad_mask")
        matrices = grads.mask.shape[:2]
        q_len, kv_len = grads.mask.shape[2:] if features.packed else (sizes.q_len, sizes.kv_len)
        of_pass = inputs._replace(sizes=sizes._replace(q_len=q_len, kv_len=kv_len))
        # Whole rows, offsets of sequences and random numbers take too many registers beside the sums of gradients.
        many = features.packed or features.dropout or (arithmetic == "half" and max(blocks) == 256)
        chunk = features_at_a_time(device, max(blocks), arithmetic, crowded=many)
        arguments = (of_pass, incoming, view(parts), *matrices, features._replace(chunk=chunk), source)
        arguments += _shared(inputs, grads.mask)
        tiles = triton.cdiv(q_len, chosen.block_m) * triton.cdiv(kv_len, chosen.block_n)
        grid = (tiles * matrices.numel(),)
        add("grad_mask", grad_mask_kernel, grid, arguments, chosen)
    if grads.sinks is not None:
        arguments = (inputs.sinks, incoming.terms.lse, incoming.terms.delta, grads.sinks, flat(sizes, features), 1024)
        calls.append(Call("grad_sinks", grad_sinks_kernel, (sizes.heads,), arguments))
    return calls


def mask_parts(inputs: Inputs, features: Features, grad_mask: Tensor, device: Device) -> Tensor:
    """What grad_mask_kernel writes: the gradient itself or, for a mask without a query or key dimension, one sum per
    tile along it, unless sequences are packed, of which a program takes all tiles."""
    sizes = inputs.sizes
    add_queries, add_keys = _shared(inputs, grad_mask)
    if features.packed or (not add_queries and not add_keys):
        return grad_mask
    launch = _launch("grad_mask", inputs, features, device)
    rows = triton.cdiv(sizes.q_len, launch.block_m) if add_queries else sizes.q_len
    columns = triton.cdiv(sizes.kv_len, launch.block_n) if add_keys else sizes.kv_len
    return grad_mask.new_empty(*grad_mask.shape[:2], rows, columns, dtype=torch.float32)


def _shared(inputs: Inputs, grad_mask: Tensor) -> tuple[bool, bool]:
    """Whether all queries, and whether all keys, share the mask's values."""
    return grad_mask.shape[2] == 1 < inputs.sizes.q_len, grad_mask.shape[3] == 1 < inputs.sizes.kv_len


def _launch(name: str, inputs: Inputs, features: Features, device: Device) -> Launch:
    width = max(padded(inputs.sizes.head_dim), padded(inputs.sizes.value_dim))
    arithmetic = arithmetic_of(inputs.query.data.dtype, features.precision)
    crowded = _crowded(inputs, features)
    return attention_launch(name, device, width, arithmetic, inputs.mask.data, features.dropout, crowded=crowded)


def _crowded(inputs: Inputs, features: Features) -> bool:
    return is_crowded(features.dropout or features.mask != "none", features.packed, inputs.sizes.group > 1)


def _row_terms_call(incoming: Incoming, terms: tuple, sizes, block_v: int) -> Call:
    output, grad_output, *given = terms
    block = max(1, 2048 // block_v)
    rows = [View(None, 0, 0, 0, 0) if x is None else View(x, *x.stride(), 0) for x in given]
    lse, delta, _ = incoming.terms
    arguments = (view(output), view(grad_output), *rows, lse, delta, sizes, block, block_v)
    count = sizes.batch * sizes.heads * sizes.q_len
    return Call("row_terms", row_terms_kernel, (triton.cdiv(count, block),), arguments)
