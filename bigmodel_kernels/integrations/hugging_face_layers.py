"""What computes in the place of norms, linear layers and feed-forward layers of Hugging Face models.

Each class is mixed with the class of the layer that it computes for, which keeps its parameters, names and hooks.
"""

import functools

import torch
from torch import Tensor

from bigmodel_kernels import functional, linear_choice
from bigmodel_kernels.nn.add_norm import add_norm
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
    """Base of what a recognised layer's class is mixed with. The mixed class adds nothing to the layer and keeps the
    layer's class as its base, so that isinstance, hooks, parameters and state_dict stay as they were."""

    # Prefixed, since a class's attribute hides a module of the same name.
    _bmk_activation: str | None = None
    """The attribute that holds the layer's activation, if it has one"""
    _bmk_linears: tuple[str, ...] = ()
    """Attributes that hold linear layers which this class computes itself, as long as nothing watches them"""
    _bmk_theirs: type
    """The layer's class"""

    def __reduce_ex__(self, protocol):
        ours, theirs = type(self).__bases__
        return _empty, (ours, theirs), self.__dict__


@functools.cache
def mixed(ours: type[Computed], theirs: type) -> type:
    """The class of a layer of class `theirs` that computes as `ours`."""
    return type(theirs.__name__, (ours, theirs), {"__module__": theirs.__module__, "_bmk_theirs": theirs})


def _empty(ours: type[Computed], theirs: type) -> torch.nn.Module:
    made = mixed(ours, theirs)
    return made.__new__(made)


class RMSNorm(Computed):
    """Normalises, rounds to the input's dtype, multiplies by the weight (Llama)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed = _rms(hidden_states, self.weight, self.variance_epsilon)
        return normed.to(torch.promote_types(self.weight.dtype, normed.dtype))


class RMSNormRoundedOnce(Computed):
    """Normalises, multiplies by the weight, rounds to the input's dtype (gpt-oss)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return _rms(hidden_states, self.weight, self.variance_epsilon)


class RMSNormAboutOne(Computed):
    """Multiplies by 1 + weight (Gemma)."""

    def forward(self, x: Tensor) -> Tensor:
        return _rms(x, 1.0 + self.weight.float(), self.eps)


class RMSNormOfT5(Computed):
    """Its output has the weight's dtype where that is a half, and else the wider dtype."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            return _rms(hidden_states, self.weight, self.variance_epsilon).to(self.weight.dtype)
        wider = torch.promote_types(self.weight.dtype, hidden_states.dtype)
        return _rms(hidden_states.to(wider), self.weight, self.variance_epsilon)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    weight = weight if weight.dtype == x.dtype else weight.float()
    return functional.add_norm(x, None, weight, kind="rms", eps=eps)[1]


class _FeedForward(Computed):
    """Base of feed-forward layers: one op where its linear layers are plain, and else the layer's own forward, which
    calls whatever took their place (an adapter, a quantised layer) or hooked into them."""

    # _bmk_linears: first, last, and the gate if there is one.
    _bmk_dropout: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        w1, w2, *gates = linears = [getattr(self, name) for name in self._bmk_linears]
        activation = _fusable_activation(getattr(self, self._bmk_activation))
        dropout = None if self._bmk_dropout is None else getattr(self, self._bmk_dropout)
        drops = 0.0 if dropout is None else dropout_p(dropout)
        fusable = (
            all(_fusable(linear, x) for linear in linears)
            and (dropout is None or is_plain(dropout, torch.nn.Dropout))
            and drops < 1.0
            and activation is not None
        )
        if not fusable:
            return super().forward(x)
        gate = gates[0] if gates else None
        return functional.feed_forward(
            x,
            w1.weight,
            w1.bias,
            w2.weight,
            w2.bias,
            activation=activation,
            gate=None if gate is None else "hidden",
            w_gate=None if gate is None else gate.weight,
            b_gate=None if gate is None else gate.bias,
            dropout_p=drops,
        )


class GatedMLP(_FeedForward):
    """down(act(gate(x)) * up(x)) (Llama)."""

    _bmk_linears, _bmk_activation = ("up_proj", "down_proj", "gate_proj"), "act_fn"


class MLP(_FeedForward):
    """fc2(act(fc1(x))) (ViT)."""

    _bmk_linears, _bmk_activation = ("fc1", "fc2"), "activation_fn"


class DenseOfT5(_FeedForward):
    """wo(dropout(act(wi(x))))."""

    _bmk_linears, _bmk_activation, _bmk_dropout = ("wi", "wo"), "act", "dropout"


class GatedDenseOfT5(_FeedForward):
    """wo(dropout(act(wi_0(x)) * wi_1(x)))."""

    _bmk_linears, _bmk_activation, _bmk_dropout = ("wi_1", "wo", "wi_0"), "act", "dropout"


class MLPOfGPT2(Computed):
    """dropout(c_proj(act(c_fc(x)))) of Conv1D layers, whose weights are [in_features, out_features]."""

    _bmk_linears, _bmk_activation = ("c_fc", "c_proj"), "act"

    def forward(self, hidden_states: Tensor) -> Tensor:
        x, first, last = hidden_states, self.c_fc, self.c_proj
        activation = _fusable_activation(self.act)
        fusable = (
            x.numel() >= linear_choice.LEAST_TRANSPOSED_ROWS * x.shape[-1]
            and _fusable_conv1d(first, x)
            and _fusable_conv1d(last, x)
            and activation is not None
        )
        if not fusable:
            return super().forward(x)
        w1, w2 = _turned(first.weight), _turned(last.weight)
        return self.dropout(functional.feed_forward(x, w1, first.bias, w2, last.bias, activation=activation))


class Conv1D(Computed):
    """GPT-2's linear layer, whose weight is [in_features, out_features], where ours is the faster one."""

    def forward(self, x: Tensor) -> Tensor:
        if linear_choice.ours_is_faster(x, self.weight, transposed=True):
            return functional.linear(x, _turned(self.weight), self.bias)
        return super().forward(x)


class Intermediate(Computed):
    """intermediate_act_fn(dense(x)) (BERT): the activation in the product's epilogue."""

    _bmk_linears, _bmk_activation = ("dense",), "intermediate_act_fn"

    def forward(self, hidden_states: Tensor) -> Tensor:
        return _activated(self.dense, self.intermediate_act_fn, hidden_states)


class Output(Computed):
    """LayerNorm(dropout(dense(x)) + residual) (BERT): the sum and its norm in one pass."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        branch = self.dropout(self.dense(hidden_states))
        if branch.shape != input_tensor.shape:
            return self.LayerNorm(branch + input_tensor)
        return add_norm(self.LayerNorm, branch, input_tensor)[1]


class SaysFC1(Computed):
    """A layer in whose forward activation_fn(fc1(x)) stands once (Whisper, BART): the activation in the product's
    epilogue. All else is computed by the layer's forward, on a stand-in for the layer."""

    _bmk_linears, _bmk_activation = ("fc1",), "activation_fn"

    def forward(self, *args, **kwargs):
        return self._bmk_theirs.forward(_StandIn(self), *args, **kwargs)


class _StandIn:
    """The layer, but that fc1 hands its input on to activation_fn, which computes both."""

    # transformers wraps forward for checkpointing, and asks whether an object's own is the wrapper: here it is not, as
    # the layer's own call is inside of it already.
    forward = None

    def __init__(self, layer: torch.nn.Module):
        self._layer = layer

    def __getattr__(self, name: str):
        return getattr(self._layer, name)

    def fc1(self, x: Tensor) -> Tensor:
        return x

    def activation_fn(self, x: Tensor) -> Tensor:
        return _activated(self._layer.fc1, self._layer.activation_fn, x)


def activation_of(activation) -> str | None:
    """The name that our ops know an activation of transformers or torch by; None for one that they do not know."""
    name = activation_name(activation)
    if name is None and type(activation).__module__ == "transformers.activations":
        return _ACTIVATIONS.get(type(activation).__name__)
    return name


def is_conv1d(module: torch.nn.Module) -> bool:
    """Whether a module is GPT-2's linear layer, or one that computes for it."""
    kind = type(module)
    return isinstance(module, Conv1D) or (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def _activated(linear: torch.nn.Module, activation, x: Tensor) -> Tensor:
    """activation(linear(x)), in one op where nothing watches either."""
    name = _fusable_activation(activation)
    if name is None or not _fusable(linear, x):
        return activation(linear(x))
    return functional.linear(x, linear.weight, linear.bias, activation=name)


def _fusable_activation(activation) -> str | None:
    """Its name, where our ops know it and no hook watches it."""
    if isinstance(activation, torch.nn.Module) and not is_plain(activation, type(activation)):
        return None
    return activation_of(activation)


def _fusable(linear: torch.nn.Module, x: Tensor) -> bool:
    return is_plain(linear, *LINEAR) and _of_one_dtype(linear.weight, x)


def _fusable_conv1d(module: torch.nn.Module, x: Tensor) -> bool:
    return is_conv1d(module) and is_plain(module, type(module)) and _of_one_dtype(module.weight, x)


def _of_one_dtype(weight: Tensor, x: Tensor) -> bool:
    """Whether they have one dtype, or autocast gives them one: else there is an error to be raised by torch."""
    return weight.dtype == x.dtype or torch.is_autocast_enabled(x.device.type)


def _turned(weight: Tensor) -> Tensor:
    """weight^T. In inference mode a view does not know whose it is, and its packed form would be forgotten."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled() or weight.is_inference():
        return weight.t()
    with torch.inference_mode(False), torch.no_grad():
        return weight.t()
