"""Attention of packed sequences: attention, once per sequence."""

import torch
from torch import Tensor

from .attention import attention


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
    """`attention` of every sequence's rows, with the options of `attention`.

    Shapes: query [queries, heads, head_dim]; key [keys, kv_heads, head_dim]; value [keys, kv_heads, value_dim];
    cu_seqlens_q and cu_seqlens_k [sequences + 1]; mask broadcastable to [sequences, heads, most queries of a sequence,
    most keys of one], of which a sequence takes its first rows and columns; alibi_slopes to [sequences, heads]; sinks
    [heads]. Returns output [queries, heads, value_dim] and lse [heads, queries] (fp32, or fp64 with fp64).
    """
    queries, keys = (_spans(cu_seqlens) for cu_seqlens in (cu_seqlens_q, cu_seqlens_k))
    outputs, lses = [], []
    for sequence, ((first, q_len), (first_key, kv_len)) in enumerate(zip(queries, keys, strict=True)):
        output, lse = attention(
            query[first : first + q_len].transpose(0, 1)[None],
            key[first_key : first_key + kv_len].transpose(0, 1)[None],
            value[first_key : first_key + kv_len].transpose(0, 1)[None],
            _part_of_mask(mask, sequence, q_len, kv_len),
            _row(alibi_slopes, sequence) if alibi_slopes is not None and alibi_slopes.dim() == 2 else alibi_slopes,
            sinks,
            dropout_seed,
            **options,
            first_batch=sequence,
        )
        outputs.append(output[0].transpose(0, 1))
        lses.append(lse[0])
    return torch.cat(outputs), torch.cat(lses, dim=1)


def _spans(cu_seqlens: Tensor) -> list[tuple[int, int]]:
    """(first token, tokens) of every sequence. No sequence is as good as an empty one, and is a part of the graph."""
    starts = cu_seqlens.tolist()
    return [(first, end - first) for first, end in zip(starts, starts[1:], strict=False)] or [(0, 0)]


def _row(x: Tensor, sequence: int) -> Tensor | None:
    """What belongs to a sequence; nothing where there is none."""
    return None if x.shape[0] == 0 else x[sequence : sequence + 1] if x.shape[0] > 1 else x


def _part_of_mask(mask: Tensor | None, sequence: int, q_len: int, kv_len: int) -> Tensor | None:
    mask = None if mask is None else _row(mask, sequence)
    if mask is None:
        return None
    mask = mask[:, :, :q_len] if mask.shape[2] > 1 else mask
    return mask[..., :kv_len] if mask.shape[3] > 1 else mask
