"""bmk.nn's Transformer layers and stacks against torch.nn's with the same state."""

import copy
import functools
import inspect

import pytest
import torch
import torch.nn.utils.prune
from hypothesis import given, settings
from hypothesis import strategies as st
from nn_pairs import assert_same, make_pair

from bigmodel_kernels import functional
from bigmodel_kernels import nn as ours
from bigmodel_kernels.nn.counterparts import COUNTERPARTS

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "F.relu": torch.nn.functional.relu,
    "torch.relu": torch.relu,
    "F.gelu": torch.nn.functional.gelu,
    "F.silu": torch.nn.functional.silu,
    "ReLU": torch.nn.ReLU(),
    "SiLU": torch.nn.SiLU(),
    "GELU": torch.nn.GELU(),
    "GELU tanh": torch.nn.GELU(approximate="tanh"),
    "tanh": torch.tanh,
    "ELU": torch.nn.ELU(),
    "partial gelu": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
}
MASKS = [None, "bool", "float", "bool per head", "causal", "causal hint", "causal float hint"]
PADDINGS = [None, "bool", "float"]
# torch.nn's layers in eval, asked without gradients, take its own fused path for all that it supports.
MODES = ["train", "eval", "inference"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
    pytest.mark.filterwarnings("ignore:Support for mismatched"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]


def make_sequence(batch, length, width, batch_first, dtype=torch.float64):
    if batch is None:
        return torch.randn(length, width, dtype=dtype)
    return torch.randn(*((batch, length) if batch_first else (length, batch)), width, dtype=dtype)


def make_mask(kind, heads, batch, q_len, kv_len):
    """(mask, whether it comes with the hint that it is causal); every query keeps key 0."""
    if kind is None:
        return None, False
    if "causal" in kind:
        mask = torch.ones(q_len, kv_len, dtype=torch.bool).triu(1)
    else:
        mask = torch.rand(((batch or 1) * heads, q_len, kv_len) if "per head" in kind else (q_len, kv_len)) < 0.4
        mask[..., 0] = False
    if "float" in kind:
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask, float("-inf"))
    return mask, "hint" in kind


def make_padding(kind, batch, length):
    if kind is None:
        return None
    padding = torch.rand((length,) if batch is None else (batch, length)) < 0.4
    padding[..., 0] = False
    if kind == "float":
        return torch.zeros(padding.shape, dtype=torch.float64).masked_fill(padding, float("-inf"))
    return padding


layer_flags = {
    "batch": st.sampled_from([None, 1, 3]),
    "batch_first": st.booleans(),
    "heads": st.sampled_from([1, 2, 3]),
    "norm_first": st.booleans(),
    "bias": st.booleans(),
    "activation": st.sampled_from(list(ACTIVATIONS)),
    "mask": st.sampled_from(MASKS),
    "padding": st.sampled_from(PADDINGS),
    "mode": st.sampled_from(MODES),
}


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 7), **layer_flags)
def test_encoder_layer(batch, batch_first, heads, norm_first, bias, activation, mask, padding, mode, length):
    torch.manual_seed(0)
    theirs, mine = make_pair(
        "TransformerEncoderLayer",
        4 * heads,
        heads,
        11,
        0.0,
        ACTIVATIONS[activation],
        batch_first=batch_first,
        norm_first=norm_first,
        bias=bias,
        training=mode == "train",
    )
    if activation == "GELU tanh":
        theirs.activation_relu_or_gelu = 0  # torch's fused path takes every GELU for the exact one
    src_mask, is_causal = make_mask(mask, heads, batch, length, length)
    options = {
        "src_mask": src_mask,
        "is_causal": is_causal,
        "src_key_padding_mask": make_padding(padding, batch, length),
    }
    inputs = [make_sequence(batch, length, 4 * heads, batch_first)]
    assert_same(theirs, mine, inputs, options, with_grad=mode != "inference")


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    memory_mask=st.sampled_from(MASKS),
    memory_padding=st.sampled_from(PADDINGS),
    **layer_flags,
)
def test_decoder_layer(
    batch,
    batch_first,
    heads,
    norm_first,
    bias,
    activation,
    mask,
    padding,
    mode,
    lengths,
    memory_mask,
    memory_padding,
):
    torch.manual_seed(0)
    theirs, mine = make_pair(
        "TransformerDecoderLayer",
        4 * heads,
        heads,
        11,
        0.0,
        ACTIVATIONS[activation],
        batch_first=batch_first,
        norm_first=norm_first,
        bias=bias,
        training=mode == "train",
    )
    q_len, kv_len = lengths
    tgt_mask, tgt_is_causal = make_mask(mask, heads, batch, q_len, q_len)
    memory_mask, memory_is_causal = make_mask(memory_mask, heads, batch, q_len, kv_len)
    options = {
        "tgt_mask": tgt_mask,
        "tgt_is_causal": tgt_is_causal,
        "tgt_key_padding_mask": make_padding(padding, batch, q_len),
        "memory_mask": memory_mask,
        "memory_is_causal": memory_is_causal,
        "memory_key_padding_mask": make_padding(memory_padding, batch, kv_len),
    }
    inputs = [make_sequence(batch, length, 4 * heads, batch_first) for length in lengths]
    assert_same(theirs, mine, inputs, options, with_grad=mode != "inference")


@settings(max_examples=30, deadline=None)
@given(
    norm_first=st.booleans(),
    batch_first=st.booleans(),
    mode=st.sampled_from(MODES),
    mask=st.sampled_from([None, "float", "causal", "causal hint"]),
    padding=st.sampled_from(PADDINGS),
)
def test_transformer(norm_first, batch_first, mode, mask, padding):
    torch.manual_seed(0)
    theirs, mine = make_pair(
        "Transformer",
        8,
        2,
        2,
        2,
        16,
        0.0,
        batch_first=batch_first,
        norm_first=norm_first,
        training=mode == "train",
    )
    src, tgt = (make_sequence(3, length, 8, batch_first) for length in (5, 4))
    options = {
        "src_key_padding_mask": make_padding(padding, 3, 5),
        "memory_key_padding_mask": make_padding(padding, 3, 5),
        "tgt_key_padding_mask": make_padding(padding, 3, 4),
    }
    for name, length in (("src", 5), ("tgt", 4)):
        options[f"{name}_mask"], hint = make_mask(mask, 2, 3, length, length)
        options[f"{name}_is_causal"] = True if hint else None
    if mode == "inference" and padding == "bool" and options["src_mask"] is None:
        theirs.encoder.use_nested_tensor = False  # it writes zeros to padded positions, in eval only
    assert_same(theirs, mine, [src, tgt], options, with_grad=mode != "inference")


def test_transformer_is_made_of_our_modules_from_the_same_random_numbers():
    torch.manual_seed(0)
    theirs = torch.nn.Transformer(8, 2, 2, 2, 16, bias=False)
    torch.manual_seed(0)
    mine = ours.Transformer(8, 2, 2, 2, 16, bias=False)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], value), name
    assert isinstance(mine, torch.nn.Transformer)
    for (name, module), other in zip(mine.named_modules(), theirs.modules(), strict=True):
        assert isinstance(module, type(other)), name
        # Linear layers are torch's own objects: their parents compute them.
        is_ours = type(module).__module__.startswith("bigmodel_kernels")
        assert is_ours == (type(other) in COUNTERPARTS), name


def test_what_the_caller_gives_stays_as_given():
    encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 16), 1)
    model = ours.Transformer(8, 2, 1, 1, 16, custom_encoder=encoder)
    assert model.encoder is encoder and type(encoder) is torch.nn.TransformerEncoder
    assert type(model.decoder) is ours.TransformerDecoder
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16)
    assert type(ours.TransformerEncoder(layer, 1).layers[0]) is torch.nn.TransformerEncoderLayer


@pytest.mark.parametrize("enable_nested_tensor", [False, True])
def test_encoder_in_eval_keeps_the_shape_and_the_padded_positions(enable_nested_tensor):
    torch.manual_seed(0)
    layer = ours.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    encoder = ours.TransformerEncoder(layer, 2, enable_nested_tensor=enable_nested_tensor)
    x = torch.randn(3, 6, 8)
    padding = torch.arange(6) >= torch.tensor([4, 2, 3])[:, None]  # the longest sequence is shorter than the tensor
    trained = encoder(x, src_key_padding_mask=padding)
    with torch.no_grad():
        evaluated = encoder.eval()(x, src_key_padding_mask=padding)
    assert evaluated.shape == x.shape and not evaluated.is_nested
    torch.testing.assert_close(evaluated, trained)


def test_nested_tensors_take_torchs_path():
    torch.manual_seed(0)
    theirs, mine = make_pair("TransformerEncoderLayer", 8, 2, 16, batch_first=True, dtype=torch.float32, training=False)
    x = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)])
    encoders = [torch.nn.TransformerEncoder(theirs, 2), ours.TransformerEncoder(mine, 2)]
    with torch.no_grad():
        expected, actual = (encoder.eval()(x) for encoder in encoders)
    assert actual.is_nested
    for a, b in zip(actual.unbind(), expected.unbind(), strict=True):
        torch.testing.assert_close(a, b)
    decoder = ours.TransformerDecoder(ours.TransformerDecoderLayer(8, 2, 16, batch_first=True), 1).eval()
    with pytest.raises(AssertionError, match="NestedTensor"):
        decoder(x, x)


def test_dropout_is_at_all_of_torchs_places():
    """With dropout of everything, what is left shows where it was applied; with some, how much."""
    for name, inputs in (("TransformerEncoderLayer", 1), ("TransformerDecoderLayer", 2)):
        for norm_first in (False, True):
            for dropout in ("dropout", "dropout1", "dropout2", "dropout3"):
                theirs, mine = make_pair(name, 8, 2, 16, 0.0, norm_first=norm_first)
                if hasattr(theirs, dropout):
                    getattr(theirs, dropout).p = getattr(mine, dropout).p = 1.0
                    assert_same(theirs, mine, [torch.randn(5, 3, 8, dtype=torch.float64)] * inputs)

    torch.manual_seed(0)
    layer = ours.TransformerEncoderLayer(64, 2, 128, dropout=0.5, norm_first=True, batch_first=True)
    layer.self_attn.dropout = layer.dropout.p = 0.0  # leaves the two dropouts of the branches
    x = torch.randn(8, 16, 64)
    with torch.no_grad():
        layer.linear2.weight.zero_()
        layer.linear2.bias.zero_()
        unchanged = (layer(x) == x).float().mean().item()
        assert 0.47 < unchanged < 0.53  # of 8192 draws at 0.5; five standard deviations are 0.028
        torch.manual_seed(1)
        first = layer(x)
        torch.manual_seed(1)
        assert torch.equal(layer(x), first)
        assert not torch.equal(layer(x), first)
        layer.eval()
        assert torch.equal(layer(x), layer(x))


def record(monkeypatch, name):
    calls = []
    original = getattr(functional, name)

    def recording(*args, **kwargs):
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.apply_defaults()
        calls.append(bound.arguments)
        return original(*args, **kwargs)

    monkeypatch.setattr(functional, name, recording)
    return calls


@pytest.mark.parametrize("norm_first", [False, True])
def test_residual_additions_are_fused(norm_first, monkeypatch):
    calls = {name: record(monkeypatch, name) for name in ("attention", "linear", "feed_forward", "add_norm")}
    x = torch.randn(5, 3, 8)
    layer = ours.TransformerEncoderLayer(8, 2, 16, dropout=0.1, norm_first=norm_first, activation="gelu").eval()
    layer(x)
    assert {name: len(made) for name, made in calls.items()} == {
        "attention": 1,
        "linear": 2,
        "feed_forward": 1,
        "add_norm": 2,
    }
    assert calls["linear"][1]["residual"] is not None and calls["feed_forward"][0]["residual"] is not None
    assert calls["feed_forward"][0]["activation"] == "gelu"

    for made in calls.values():
        made.clear()
    layer.train()(x)  # what dropout leaves is added together with the norm that follows
    assert calls["linear"][1]["residual"] is None and calls["feed_forward"][0]["residual"] is None
    assert calls["feed_forward"][0]["dropout_p"] == 0.1
    added = [call["residual"] is not None for call in calls["add_norm"]]
    assert added == ([False, True] if norm_first else [True, True])


SUBMODULES = ["self_attn", "linear1", "linear2", "dropout", "dropout1", "norm1", "norm2", "multihead_attn", "norm3"]


@pytest.mark.parametrize("name", ["TransformerEncoderLayer", "TransformerDecoderLayer"])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_hooks_on_submodules_run_and_count(name, norm_first, training, kind):
    """A hook that changes the output, or one that sees gradients, on each submodule in turn."""
    inputs = [torch.randn(5, 3, 8, dtype=torch.float64)] * (1 if "Encoder" in name else 2)
    for submodule in SUBMODULES:
        theirs, mine = make_pair(name, 8, 2, 16, 0.0, norm_first=norm_first, training=training)
        if not hasattr(theirs, submodule):
            continue
        seen = []

        def double(module, args, output):
            return tuple(2 * x if x is not None else None for x in output) if isinstance(output, tuple) else 2 * output

        for module in (theirs, mine):
            if kind == "forward":
                getattr(module, submodule).register_forward_hook(double)
            else:
                getattr(module, submodule).register_full_backward_hook(
                    lambda module, grad_in, grad_out, seen=seen: seen.append(grad_out[0])
                )
        assert_same(theirs, mine, inputs)
        if kind == "backward":
            assert len(seen) == 2, submodule
            torch.testing.assert_close(seen[0], seen[1], rtol=1e-9, atol=1e-11)


class Adapted(torch.nn.Module):
    """Some stranger's replacement of a linear layer."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.scale = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.scale * self.linear(x)


def test_replaced_pruned_and_parametrized_submodules_are_called():
    theirs, mine = make_pair("TransformerEncoderLayer", 8, 2, 16, 0.0)
    x = torch.randn(5, 3, 8, dtype=torch.float64)
    for module in (theirs, mine):
        module.linear1 = Adapted(module.linear1)
        module.norm2 = torch.nn.Identity()
        module.dropout2 = torch.nn.Identity()
        torch.nn.utils.prune.ln_structured(module.linear2, "weight", 0.5, n=2, dim=0)
        torch.nn.utils.parametrizations.weight_norm(module.linear1.linear)
        torch.nn.utils.parametrizations.weight_norm(module.self_attn, "in_proj_weight")
    assert_same(theirs, mine, [x])


def test_out_proj_hooks_and_replacements_run():
    _, mine = make_pair("MultiheadAttention", 8, 2)
    x = torch.randn(5, 3, 8, dtype=torch.float64)
    plain = mine(x, x, x)[0]
    handle = mine.out_proj.register_forward_hook(lambda module, args, output: 3 * output)
    torch.testing.assert_close(mine(x, x, x)[0], 3 * plain)
    handle.remove()
    mine.out_proj = Adapted(mine.out_proj).double()
    torch.testing.assert_close(mine(x, x, x)[0], 1.5 * plain)


def test_methods_overridden_in_a_subclass_are_called():
    def make(base):
        class Halved(base):
            def _sa_block(self, *args, **kwargs):
                return 0.5 * super()._sa_block(*args, **kwargs)

            def _ff_block(self, x):
                return 0.25 * super()._ff_block(x)

        torch.manual_seed(0)
        return Halved(8, 2, 16, 0.0).double()

    x = torch.randn(5, 3, 8, dtype=torch.float64)
    for name in ("TransformerEncoderLayer", "TransformerDecoderLayer"):
        theirs, mine = make(getattr(torch.nn, name)), make(getattr(ours, name))
        assert_same(theirs, mine, [x] * (1 if "Encoder" in name else 2))


@pytest.mark.parametrize("norm_first", [False, True])
def test_fully_padded_sequences_stay_finite(norm_first):
    torch.manual_seed(0)
    layer = ours.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=norm_first).double()
    x = torch.randn(2, 4, 8, dtype=torch.float64, requires_grad=True)
    padding = torch.zeros(2, 4, dtype=torch.bool)
    padding[1] = True
    output = layer(x, src_key_padding_mask=padding)
    output.square().sum().backward()
    assert output.isfinite().all() and x.grad.isfinite().all()
    torch.testing.assert_close(output[0], layer(x[:1])[0])


def test_wrong_shapes_raise_what_torch_raises():
    theirs, mine = make_pair("TransformerEncoderLayer", 8, 2, 16, dtype=torch.float32)
    for x in (torch.randn(5, 3, 7), torch.randn(2, 5, 3, 8)):
        for module in (theirs, mine):
            with pytest.raises(AssertionError):
                module(x)
    theirs, mine = make_pair("Transformer", 8, 2, 1, 1, 16, dtype=torch.float32)
    for src, tgt in ((torch.randn(5, 3, 7), torch.randn(5, 3, 8)), (torch.randn(5, 2, 8), torch.randn(5, 3, 8))):
        for module in (theirs, mine):
            with pytest.raises(RuntimeError):
                module(src, tgt)
    with pytest.raises(RuntimeError, match="activation should be relu/gelu"):
        ours.TransformerEncoderLayer(8, 2, activation="swish")
    with pytest.raises(RuntimeError, match="normalized_shape"):
        ours.TransformerEncoderLayer(8, 2, 16, norm_first=True)(torch.randn(5, 3, 7))


def test_a_causal_mask_is_recognised_and_others_are_not():
    from bigmodel_kernels.nn.masks import is_causal_mask

    causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
    additive = torch.nn.Transformer.generate_square_subsequent_mask(4)
    assert is_causal_mask(causal, None, 4) and is_causal_mask(additive, None, 4)
    assert is_causal_mask(additive.double(), None, 4)
    assert not is_causal_mask(causal, False, 4) and is_causal_mask(~causal, True, 4)
    assert not is_causal_mask(None, None, 4)
    assert not is_causal_mask(causal.T, None, 4) and not is_causal_mask(causal.tril(2), None, 4)
    assert not is_causal_mask(causal.expand(2, 4, 4), None, 4) and not is_causal_mask(causal, None, 5)


def test_layers_are_copies_not_shared_by_a_stack():
    layer = ours.TransformerEncoderLayer(8, 2, 16)
    stack = ours.TransformerEncoder(layer, 2)
    assert len({id(p) for module in (layer, stack) for p in module.parameters()}) == 3 * len(list(layer.parameters()))
    assert copy.deepcopy(stack).layers[0].self_attn.in_proj_weight is not stack.layers[0].self_attn.in_proj_weight
