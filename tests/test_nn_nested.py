"""Nested tensors in bmk.nn's modules: what torch.nn's compute, and its errors."""

import copy

import pytest
import torch
from nn_pairs import make_pair

import bigmodel_kernels as bmk
from bigmodel_kernels import nn as ours

LAYOUTS = [torch.strided, torch.jagged]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]


def nested(layout=torch.strided, dtype=torch.float32):
    torch.manual_seed(0)
    parts = [torch.randn(length, 16, dtype=dtype) for length in (3, 5)]
    return torch.nested.nested_tensor(parts, layout=layout)


def assert_same(actual, expected):
    assert actual.is_nested and actual.layout == expected.layout
    for mine, theirs in zip(actual.unbind(), expected.unbind(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("name, sizes", [("LayerNorm", (16,)), ("RMSNorm", (16,)), ("Linear", (16, 8))])
def test_small_modules(name, sizes, recorded, layout, dtype):
    theirs, mine = make_pair(name, *sizes, dtype=dtype)
    x = nested(layout, dtype)
    with torch.set_grad_enabled(recorded):
        if name == "RMSNorm" and layout is torch.strided:
            for module in (theirs, mine):  # torch has none
                with pytest.raises(RuntimeError, match="NestedTensorImpl"):
                    module(x)
            return
        assert_same(mine(x), theirs(x))


def test_norms_without_parameters_and_over_several_dimensions():
    x = nested(torch.jagged)
    for name in ("LayerNorm", "RMSNorm"):
        theirs, mine = make_pair(name, 16, elementwise_affine=False, dtype=torch.float32)
        assert_same(mine(x), theirs(x))
        theirs, mine = make_pair(name, (3, 16), dtype=torch.float32)
        with pytest.raises((RuntimeError, ValueError)) as their_error:
            theirs(x)
        with pytest.raises(their_error.type) as our_error:
            mine(x)
        assert str(our_error.value) == str(their_error.value)


def test_gradients():
    theirs, mine = make_pair("LayerNorm", 16, dtype=torch.float32)
    x = nested(torch.jagged)
    for module in (theirs, mine):
        module(x).values().square().sum().backward()
    for parameter, expected in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("how", ["replaced", "made of ours"])
def test_encoders(how, norm_first):
    arguments, options = (16, 4, 32), {"batch_first": True, "norm_first": norm_first}
    theirs = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(*arguments, **options), 2, norm=torch.nn.LayerNorm(16)
    )
    if how == "replaced":
        mine = copy.deepcopy(theirs)
        bmk.replace_modules(mine)
    else:
        layer = ours.TransformerEncoderLayer(*arguments, **options)
        mine = ours.TransformerEncoder(layer, 2, norm=ours.LayerNorm(16))
        mine.load_state_dict(theirs.state_dict())
    x = nested()
    with torch.no_grad():
        assert_same(mine.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_decoders_refuse_as_torchs(layout, norm_first):
    layer = ours.TransformerDecoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first).eval()
    x, plain = nested(layout), torch.randn(2, 5, 16)
    for inputs in ((x, x), (x, plain), (plain, x)):
        with pytest.raises(AssertionError, match="MultiheadAttention does not support NestedTensor"):
            layer(*inputs)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("gate", [None, "hidden", "input"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_feed_forward(layout, gate, activation):
    module, x = ours.FeedForward(16, 32, activation, gate), nested(layout)
    if gate == "input" and layout is torch.strided:
        with pytest.raises(NotImplementedError, match="sigmoid"):  # torch has none
            module(x)
        return
    expected = module.unfused(x)
    assert_same(module(x), expected)
    assert_same(module(x, x), x + expected)
    if layout is torch.strided:
        for part, whole in zip(x.unbind(), module(x).unbind(), strict=True):
            torch.testing.assert_close(module(part), whole)
