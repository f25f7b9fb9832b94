"""Norms and feed-forward layers of Hugging Face models that compute with bigmodel_kernels.

transformers repeats the same few layers under hundreds of names, one set per model. So a layer is recognised by the
code of its forward: where that is the code of a layer that we know, we know what it computes.
"""

import functools
import importlib
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from bigmodel_kernels import functional
from bigmodel_kernels.nn.fusion import LINEAR, activation_name, dropout_p, is_plain

# Activations of transformers by class; what it names otherwise is torch's, or no activation of ours.
_ACTIVATIONS = {
    "SiLUActivation": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
}


class Computed:
    """Base of what a recognised layer's class is mixed with. The mixed class adds no attribute and keeps the layer's
    class as its base, so that isinstance, hooks, parameters and state_dict stay as they were."""

    def __reduce_ex__(self, protocol):
        ours, theirs = type(self).__bases__
        return _empty, (ours, theirs), self.__dict__


class _RMSNorm(Computed):
    """Normalises, rounds to the input's dtype, multiplies by the weight (Llama)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed = _rms(hidden_states, self.weight, self.variance_epsilon)
        return normed.to(torch.promote_types(self.weight.dtype, normed.dtype))


class _RMSNormRoundedOnce(Computed):
    """Normalises, multiplies by the weight, rounds to the input's dtype (gpt-oss)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return _rms(hidden_states, self.weight, self.variance_epsilon)


class _RMSNormAboutOne(Computed):
    """Multiplies by 1 + weight (Gemma)."""

    def forward(self, x: Tensor) -> Tensor:
        return _rms(x, 1.0 + self.weight.float(), self.eps)


class _RMSNormOfT5(Computed):
    """Its output has the weight's dtype where that is a half, and else the wider dtype."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            return _rms(hidden_states, self.weight, self.variance_epsilon).to(self.weight.dtype)
        wider = torch.promote_types(self.weight.dtype, hidden_states.dtype)
        return _rms(hidden_states.to(wider), self.weight, self.variance_epsilon)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    weight = weight if weight.dtype == x.dtype else weight.float()
    return functional.add_norm(x, None, weight, kind="rms", eps=eps)[1]


@dataclass(frozen=True)
class _Parts:
    """The names of a feed-forward layer's modules."""

    first: str
    last: str
    activation: str
    gate: str | None = None
    dropout: str | None = None


class _FeedForward(Computed):
    """Base of feed-forward layers: one op where its linear layers are plain, and else the layer's own forward, which
    calls whatever took their place (an adapter, a quantised layer) or hooked into them."""

    _parts: _Parts

    def forward(self, x: Tensor) -> Tensor:
        parts = self._parts
        w1, w2, activation = getattr(self, parts.first), getattr(self, parts.last), getattr(self, parts.activation)
        gate = None if parts.gate is None else getattr(self, parts.gate)
        dropout = None if parts.dropout is None else getattr(self, parts.dropout)
        linears = [linear for linear in (w1, w2, gate) if linear is not None]
        drops = 0.0 if dropout is None else dropout_p(dropout)
        fusable = (
            all(is_plain(linear, *LINEAR) and linear.weight.dtype == x.dtype for linear in linears)
            and (dropout is None or is_plain(dropout, torch.nn.Dropout))
            and drops < 1.0
            and not _watched(activation)
        )
        if not fusable:
            return super().forward(x)
        return functional.feed_forward(
            x,
            w1.weight,
            w1.bias,
            w2.weight,
            w2.bias,
            activation=_activation(activation),
            gate=None if gate is None else "hidden",
            w_gate=None if gate is None else gate.weight,
            b_gate=None if gate is None else gate.bias,
            dropout_p=drops,
        )


class _GatedMLP(_FeedForward):
    """down(act(gate(x)) * up(x)) (Llama)."""

    _parts = _Parts("up_proj", "down_proj", "act_fn", gate="gate_proj")


class _MLP(_FeedForward):
    """fc2(act(fc1(x))) (ViT)."""

    _parts = _Parts("fc1", "fc2", "activation_fn")


class _DenseOfT5(_FeedForward):
    """wo(dropout(act(wi(x))))."""

    _parts = _Parts("wi", "wo", "act", dropout="dropout")


class _GatedDenseOfT5(_FeedForward):
    """wo(dropout(act(wi_0(x)) * wi_1(x)))."""

    _parts = _Parts("wi_1", "wo", "act", gate="wi_0", dropout="dropout")


# (model, class, what computes in its place, methods that say what it computes)
_KNOWN = (
    ("llama", "LlamaRMSNorm", _RMSNorm, ("forward",)),
    ("gpt_oss", "GptOssRMSNorm", _RMSNormRoundedOnce, ("forward",)),
    ("gemma2", "Gemma2RMSNorm", _RMSNormAboutOne, ("forward", "_norm")),
    ("t5", "T5LayerNorm", _RMSNormOfT5, ("forward",)),
    ("llama", "LlamaMLP", _GatedMLP, ("forward",)),
    ("vit", "ViTMLP", _MLP, ("forward",)),
    ("t5", "T5DenseActDense", _DenseOfT5, ("forward",)),
    ("t5", "T5DenseGatedActDense", _GatedDenseOfT5, ("forward",)),
)


def recognised(module: torch.nn.Module) -> type[Computed] | None:
    """What computes in the place of a layer of transformers; None for any other module."""
    theirs = type(module)
    if sys.modules.get("transformers") is None or theirs.__module__.partition(".")[0] == "torch":
        return None
    return _recognised(theirs)


def reason_to_leave(module: torch.nn.Module, ours: type[Computed]) -> str | None:
    """Why a recognised layer must stay as it is; None when it need not."""
    if torch.nn.utils.parametrize.is_parametrized(module):
        return f"a parametrized {type(module).__name__}"
    if "forward" in module.__dict__:
        return f"its forward was replaced on the {type(module).__name__} itself"
    if issubclass(ours, _FeedForward):
        activation = getattr(module, ours._parts.activation)
        if _activation(activation) is None:
            return f"its activation, {activation}, is not one of feed_forward's"
    return None


def adopt(module: torch.nn.Module, ours: type[Computed]) -> None:
    """Makes a recognised layer compute as `ours`, in place."""
    module.__class__ = _mixed(ours, type(module))


def _activation(activation) -> str | None:
    name = activation_name(activation)
    if name is None and type(activation).__module__ == "transformers.activations":
        return _ACTIVATIONS.get(type(activation).__name__)
    return name


def _watched(activation) -> bool:
    return isinstance(activation, torch.nn.Module) and not is_plain(activation, type(activation))


@functools.cache
def _recognised(theirs: type) -> type[Computed] | None:
    for model, name, ours, methods in _KNOWN:
        known = getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), name, None)
        # Not every version of transformers has all of them.
        if known is not None and all(_same_code(theirs, known, method) for method in methods):
            return ours
    return None


def _same_code(one: type, other: type, method: str) -> bool:
    """Whether two classes have a method of the same code: instructions, names and constants but for the docstring."""
    codes = []
    for function in (getattr(one, method, None), getattr(other, method, None)):
        # A decorated function's own code says nothing about the function inside.
        if not hasattr(function, "__code__") or function.__closure__ or hasattr(function, "__wrapped__"):
            return False
        code = function.__code__
        codes.append((code.co_code, code.co_names, [each for each in code.co_consts if each != function.__doc__]))
    return codes[0] == codes[1]


@functools.cache
def _mixed(ours: type[Computed], theirs: type) -> type:
    return type(theirs.__name__, (ours, theirs), {"__module__": theirs.__module__})


def _empty(ours: type[Computed], theirs: type) -> torch.nn.Module:
    mixed = _mixed(ours, theirs)
    return mixed.__new__(mixed)
