"""This package as a contender."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

import bigmodel_kernels as bmk

from ..case import Inputs
from .rows import Attention, Classifier, Decode, FeedForward, Linear, Module, Norm, PeerRow
from .torch_call import TorchCall, TrainingStep, function_call, module_call

EPS = 1e-5


def setup(arguments: Sequence[str], threads: int) -> None:
    """Nothing to set."""


def versions() -> dict[str, str]:
    return {"bigmodel_kernels": bmk.__version__}


def contenders(row: PeerRow) -> dict[str, object]:
    """One contender, without a name of its own."""
    return {"": partial(_make, row)}


def _make(row: PeerRow, sets: Sequence[Inputs], differentiable: tuple[str, ...]) -> TorchCall | TrainingStep:
    work = row.work
    if isinstance(work, Classifier):
        return TrainingStep(work, bmk.nn.MultiheadAttention, sets[0])
    if isinstance(work, Module):
        return module_call(_module(work), sets, differentiable)
    function, names = _function(work)
    return function_call(function, names, sets, differentiable)


def _module(work: Module) -> nn.Module:
    if work.kind == "EncoderLayer":
        return bmk.nn.TransformerEncoderLayer(
            work.width, work.heads, 4 * work.width, 0.0, "gelu", batch_first=True, device="meta"
        )
    return _SelfAttention(work)


class _SelfAttention(bmk.nn.MultiheadAttention):
    def __init__(self, work: Module):
        super().__init__(work.width, work.heads, batch_first=True, device="meta")
        self._need_weights = work.kind == "MHA weights"

    def forward(self, x):
        output, weights = super().forward(x, x, x, need_weights=self._need_weights)
        return (output, weights) if self._need_weights else output


def _function(work):
    """(function, names of its inputs)"""
    if isinstance(work, Attention):
        attend = lambda q, k, v, mask: bmk.attention(q, k, v, mask=mask, causal=work.causal)  # noqa: E731
        return attend, ("query", "key", "value", "mask")
    if isinstance(work, Decode):
        full = torch.full((work.batch,), work.length, dtype=torch.int32)
        return (lambda query, key, value: bmk.attention_decode(query, key, value, full)), ("query", "key", "value")
    if isinstance(work, Linear):
        return bmk.linear, ("x", "weight", "bias")
    if isinstance(work, FeedForward):
        forward = lambda x, w1, b1, w2, b2, w_gate: bmk.feed_forward(  # noqa: E731
            x, w1, b1, w2, b2, activation=work.activation, gate=work.gate, w_gate=w_gate
        )
        return forward, ("x", "w1", "b1", "w2", "b2", "w_gate")
    return _norm(work)


def _norm(work: Norm):
    if work.kind == "add+LayerNorm":
        add_norm = lambda x, residual, weight, bias: bmk.add_norm(x, residual, weight, bias, eps=EPS)  # noqa: E731
        return add_norm, ("x", "residual", "weight", "bias")
    kind, names = ("layer", ("x", "weight", "bias")) if work.kind == "LayerNorm" else ("rms", ("x", "weight"))
    return (lambda x, *parameters: bmk.add_norm(x, None, *parameters, kind=kind, eps=EPS)[1]), names
