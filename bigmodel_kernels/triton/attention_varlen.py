"""attention_varlen and its gradients: the kernels of attention on packed sequences (packed_sequences.py has how)."""

import torch
from torch import Tensor

from .attention_backward import Gradients, empty_mask_gradient, run_gradients, zero
from .attention_forward import forward_calls, without_keys
from .attention_gradient import Incoming, Terms
from .attention_inputs import Features, Inputs, Packed, prepare, view
from .attention_launch import device_of

# What the schema says of options that a call leaves out.
_OPTIONS = {"causal": "none", "scale": None, "window_left": -1, "window_right": -1, "softcap": 0.0, "dropout_p": 0.0}


def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_seed: Tensor | None = None,
    **options,
) -> tuple[Tensor, Tensor]:
    """attention of every sequence's rows; bigmodel_kernels.attention_varlen has the full story, and attention the
    options.

    Shapes: query [queries, heads, head_dim]; key [keys, kv_heads, head_dim]; value [keys, kv_heads, value_dim];
    cu_seqlens_q and cu_seqlens_k [sequences + 1], int32 or int64, whose values are not checked; mask [sequences or 1,
    heads or 1, most queries of a sequence or 1, most keys of one or 1]; alibi_slopes [heads] or [sequences or 1,
    heads]; sinks [heads]. Returns output [queries, heads, value_dim] and lse [heads, queries] in fp32.
    Raises: ValueError for shapes, dtypes or options that do not fit together.
    """
    tensors = (query, key, value, cu_seqlens_q, cu_seqlens_k, mask, alibi_slopes, sinks, dropout_seed)
    inputs, features = prepare_packed("attention_varlen", *tensors, **options)
    output = _empty_in_order_of(query, value.shape[2])
    lse = query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)
    if lse.numel() and key.shape[0]:
        of_all = heads_first(output, inputs.sizes.batch), lse.expand(inputs.sizes.batch, -1, -1)
        for call in forward_calls(inputs, features, *of_all, query.dtype, device_of(query)):
            call.run()
    elif lse.numel():
        without_keys(output, lse, sinks)
    return output, lse


def attention_varlen_backward(
    grad_output: Tensor | None,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_seed: Tensor | None = None,
    *,
    output_mask: tuple[bool, bool, bool, bool, bool] = (True, True, True, False, False),
    **options,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value, mask and sinks, those that output_mask asks for and that exist: see
    attention_backward. Shapes and options are those of attention_varlen."""
    tensors = (query, key, value, cu_seqlens_q, cu_seqlens_k, mask, alibi_slopes, sinks, dropout_seed)
    inputs, features = prepare_packed("attention_varlen_backward", *tensors, **options)
    grads = Gradients(
        query=_empty_in_order_of(query, query.shape[2]) if output_mask[0] else None,
        key=_empty_in_order_of(key, key.shape[2]) if output_mask[1] else None,
        value=_empty_in_order_of(value, value.shape[2]) if output_mask[2] else None,
        mask=empty_mask_gradient(mask, output_mask[3]),
        sinks=sinks.new_empty(sinks.shape) if output_mask[4] and sinks is not None else None,
    )
    if lse.numel() == 0 or key.shape[0] == 0:
        zero(grads)
        if grads.sinks is not None and grad_lse is not None and lse.numel():
            grads.sinks.copy_(grad_lse.sum(1))  # without keys the lse is the sink itself
    else:
        if grad_output is None and grads.value is not None:
            grads.value.zero_()  # the lse does not depend on the values
        sequences = inputs.sizes.batch
        output, grad_output = (heads_first(x, sequences) for x in (output, grad_output))
        lse, grad_lse = (None if x is None else x.expand(sequences, -1, -1) for x in (lse, grad_lse))
        incoming = Incoming(
            Terms(*(query.new_empty(lse.shape[1:], dtype=torch.float32) for _ in range(2))),
            view(grad_output),
            view(None),
        )
        of_rows = {name: heads_first(getattr(grads, name), sequences) for name in ("query", "key", "value")}
        source = "lse" if grad_output is None else "output"
        terms = (output, grad_output, lse, grad_lse)
        run_gradients(inputs, features, incoming, source, terms, grads._replace(**of_rows))
    nothing = query.new_empty(0)
    return tuple(nothing if grad is None else grad for grad in grads[:5])


def prepare_packed(
    op: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *others: Tensor | None,
    **options,
) -> tuple[Inputs, Features]:
    """The kernels' arguments of a call with the schema's arguments."""
    for name, x in {"query": query, "key": key, "value": value}.items():
        if x.dim() != 3:
            raise ValueError(f"[{op}] {name} has {x.dim()} dimensions, expected 3")
    sequences = cu_seqlens_q.numel() - 1
    for name, x in {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}.items():
        if x.dtype not in (torch.int32, torch.int64) or x.shape != (sequences + 1,) or sequences < 0:
            expected = f"int32 or int64 of shape [{max(sequences, 0) + 1}], as cu_seqlens_q"
            raise ValueError(f"[{op}] {name} is {x.dtype} of shape {list(x.shape)}; expected {expected}")
    if sequences == 0 and query.shape[0] + key.shape[0] > 0:
        raise ValueError(f"[{op}] cu_seqlens_q has 1 entry, and there are tokens; expected the end of every sequence")
    options = _OPTIONS | options
    starts = cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()
    packed = Packed(*starts, query.shape[0], key.shape[0], 0 if options["causal"] == "top_left" else 1)
    tensors = (heads_first(x, sequences) for x in (query, key, value))
    return prepare(op, *tensors, *others, **options, packed=packed)


def heads_first(x: Tensor | None, sequences: int) -> Tensor | None:
    """[tokens, heads, features] as [sequences, heads, tokens, features], the same for every sequence."""
    return None if x is None else x.transpose(0, 1).expand(sequences, -1, -1, -1)


def _empty_in_order_of(x: Tensor, features: int) -> Tensor:
    """A new [tokens, heads, features] laid out as x is: python/src/attention_varlen.cpp has the rule."""
    tokens, heads, _ = x.shape
    if heads > 1 and tokens > 1 and x.stride(1) > x.stride(0):
        return x.new_empty(heads, tokens, features).transpose(0, 1)
    return x.new_empty(tokens, heads, features)
