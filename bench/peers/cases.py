"""A row as a Case: its inputs, its truth in float64, its operations and bytes. The conductor's side of a row."""

from collections.abc import Callable
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from bigmodel_kernels import reference

from .. import bench_attention, bench_feed_forward, bench_linear, bench_nn
from ..case import Case, Inputs, item_bytes, random_tensor
from . import classifier
from .rows import Attention, Classifier, Decode, FeedForward, Linear, Module, Norm, PeerRow

EPS = 1e-5


def case_of(row: PeerRow) -> Case:
    """The Case of a row. It has no contenders: these are the workers'."""
    return _CASES[type(row.work)](row)


def _suite_case(module) -> Callable[[PeerRow], Case]:
    """A row of the suite's own: the same inputs, truth and counts."""
    return lambda row: module.case(module.Shape(**asdict(row.work)), row.dtype, row.backward)


def _decode(row: PeerRow) -> Case:
    work: Decode = row.work
    q = work.batch * work.heads * work.head_dim
    cache = work.batch * work.kv_heads * work.length * work.head_dim

    def make_inputs(generator: torch.Generator) -> Inputs:
        cache_shape = (work.batch, work.kv_heads, work.length, work.head_dim)
        return {
            "query": random_tensor(generator, row.dtype, work.batch, work.heads, 1, work.head_dim),
            "key": random_tensor(generator, row.dtype, *cache_shape),
            "value": random_tensor(generator, row.dtype, *cache_shape),
        }

    return Case(
        op="decode",
        shape=f"({work.batch},{work.heads}/{work.kv_heads},1 over {work.length},{work.head_dim})",
        dtype=row.dtype,
        flops=4 * q * work.length,
        bytes=2 * (q + cache) * item_bytes(row.dtype),
        make_inputs=make_inputs,
        contenders={},
        truth=lambda inputs: reference.attention(inputs["query"], inputs["key"], inputs["value"])[0],
    )


def _norm(row: PeerRow) -> Case:
    work: Norm = row.work
    adds, has_bias = work.kind.startswith("add+"), work.kind.endswith("LayerNorm")
    tensors = ("x", "residual") if adds else ("x",)
    parameters = ("weight", "bias") if has_bias else ("weight",)
    # Forward reads each input and writes each output once; backward reads the normed sum and the gradients and writes
    # one gradient, as bench_add_norm counts.
    passes = len(tensors) * 2 + ((2 + len(tensors)) if row.backward else 0)

    def make_inputs(generator: torch.Generator) -> Inputs:
        size = (work.rows, work.width)
        inputs = {name: random_tensor(generator, row.dtype, *size) for name in tensors}
        inputs |= {name: random_tensor(generator, row.dtype, work.width) for name in parameters}
        grads = ("grad_output 0", "grad_output 1") if adds else ("grad_output",)
        return inputs | {name: random_tensor(generator, row.dtype, *size) for name in grads}

    def truth(inputs: Inputs) -> Tensor | tuple[Tensor, Tensor]:
        total = inputs["x"] + inputs["residual"] if adds else inputs["x"]
        if has_bias:
            normed = F.layer_norm(total, (work.width,), inputs["weight"], inputs["bias"], EPS)
        else:
            normed = F.rms_norm(total, (work.width,), inputs["weight"], EPS)
        return (total, normed) if adds else normed

    return Case(
        op="norm",
        shape=f"{work.kind} {work.rows}x{work.width}",
        dtype=row.dtype,
        flops=work.rows * work.width * (8 if has_bias else 5) * (3 if row.backward else 1),
        bytes=passes * work.rows * work.width * item_bytes(row.dtype),
        make_inputs=make_inputs,
        contenders={},
        truth=truth,
        differentiable=(*tensors, *parameters) if row.backward else (),
        # Rows are independent forward; the parameters' gradients need them all.
        crop=lambda name, tensor: tensor if row.backward or name in parameters else tensor[:256],
    )


def _classifier(row: PeerRow) -> Case:
    work: Classifier = row.work
    tokens, width = work.batch * work.length, work.width
    parameters = work.vocabulary * width + 4 * width**2 + width * work.classes

    def make_inputs(generator: torch.Generator) -> Inputs:
        inputs: Inputs = {
            "tokens": torch.randint(work.vocabulary, (work.batch, work.length), generator=generator),
            "labels": torch.randint(work.classes, (work.batch,), generator=generator),
        }
        for name, shape in classifier.parameter_shapes(work).items():
            scale = shape[-1] ** -0.5 if len(shape) > 1 else 1.0
            inputs[name] = random_tensor(generator, row.dtype, *shape, scale=scale)
        return inputs

    def truth(inputs: Inputs) -> tuple[Tensor, ...]:
        """The loss and the parameters' gradients of the first step."""
        model = classifier.with_parameters(work, torch.nn.MultiheadAttention, inputs)
        with torch.enable_grad():
            return tuple(classifier.first_step(model, inputs["tokens"], inputs["labels"]).values())

    return Case(
        op="training",
        shape=f"classifier {work.vocabulary}x{width}, {work.heads} heads, {work.batch}x{work.length}, Adam",
        dtype=row.dtype,
        flops=3 * (8 * tokens * width**2 + 4 * tokens * work.length * width),
        # Adam reads parameter, gradient and two moments and writes all but the gradient; forward and backward read the
        # parameters and write the gradients.
        bytes=10 * parameters * item_bytes(row.dtype),
        make_inputs=make_inputs,
        contenders={},
        truth=truth,
    )


_CASES: dict[type, Callable[[PeerRow], Case]] = {
    Attention: _suite_case(bench_attention),
    FeedForward: _suite_case(bench_feed_forward),
    Linear: _suite_case(bench_linear),
    Module: _suite_case(bench_nn),
    Decode: _decode,
    Norm: _norm,
    Classifier: _classifier,
}
