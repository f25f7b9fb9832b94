"""What torch expects of every module: copies, files, dtypes, autocast, compilation, export; and the small modules."""

import copy
import io
import pickle

import pytest
import torch
from nn_pairs import assert_same, in_float64, make_pair, run

from bigmodel_kernels import functional
from bigmodel_kernels import nn as ours
from bigmodel_kernels.nn.feed_forward import ACTIVATIONS
from bigmodel_kernels.testing import FORWARD, GRADIENT, assert_as_exact

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")

# name: constructor arguments, number of inputs of shape [5, 3, 8]
MODULES = {
    "MultiheadAttention": ((8, 2), 3),
    "TransformerEncoderLayer": ((8, 2, 16, 0.0), 1),
    "TransformerDecoderLayer": ((8, 2, 16, 0.0), 2),
    "Transformer": ((8, 2, 1, 1, 16, 0.0), 2),
    "LayerNorm": ((8,), 1),
    "RMSNorm": ((8,), 1),
}


def inputs_of(name, dtype=torch.float32):
    x = torch.randn(5, 3, 8, dtype=dtype)
    return [x] * MODULES[name][1]


@pytest.fixture(params=MODULES)
def name(request):
    torch.manual_seed(0)
    return request.param


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


def test_signatures_are_torchs(name):
    import inspect

    theirs, mine = getattr(torch.nn, name), getattr(ours, name)
    assert inspect.signature(mine) == inspect.signature(theirs)
    assert list(inspect.signature(mine.forward).parameters) == list(inspect.signature(theirs.forward).parameters)
    assert issubclass(mine, theirs)


def test_copies_and_files(name):
    _, mine = make_pair(name, *MODULES[name][0], dtype=torch.float32)
    inputs = inputs_of(name)
    expected = first(mine(*inputs))
    buffer = io.BytesIO()
    torch.save(mine, buffer)
    buffer.seek(0)
    for copied in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine)), torch.load(buffer, weights_only=False)):
        assert type(copied) is type(mine)
        assert all(a is not b for a, b in zip(copied.parameters(), mine.parameters(), strict=True))
        assert torch.equal(first(copied(*inputs)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_loses_no_more_than_torchs_module(name, dtype, training):
    """The tolerance rule, with torch.nn's module in that dtype as the measure."""
    # relu's kink would make one rounding flip a whole gradient
    smooth = {"activation": "gelu"} if name.startswith("Transformer") else {}
    theirs, mine = make_pair(name, *MODULES[name][0], dtype=dtype, training=training, **smooth)
    inputs = inputs_of(name, dtype)
    wide, wide_inputs, _ = in_float64(theirs, inputs, {})
    truth, true_gradients = run(wide, wide_inputs, {})
    expected, expected_gradients = run(theirs, inputs, {})
    actual, gradients = run(mine, inputs, {})

    for i, outputs in enumerate(zip(actual, expected, truth, strict=True)):
        assert_as_exact(f"output {i}", *outputs, FORWARD, dtype)
    for key in true_gradients:
        assert_as_exact(key, gradients[key], expected_gradients[key], true_gradients[key], GRADIENT, dtype)


def test_moves_between_dtypes(name):
    _, mine = make_pair(name, *MODULES[name][0], dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        mine.to(dtype)
        assert first(mine(*inputs_of(name, dtype))).dtype == dtype


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_autocast_gives_torchs_dtypes(name, input_dtype, training, norm_first):
    options = {"norm_first": norm_first} if name.startswith("Transformer") else {}
    theirs, mine = make_pair(name, *MODULES[name][0], dtype=torch.float32, training=training, **options)
    inputs = inputs_of(name, input_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        expected, expected_gradients = run(theirs, inputs, {})
        actual, gradients = run(mine, inputs, {})
    for mine_out, their_out in zip(actual, expected, strict=True):
        assert mine_out.dtype == their_out.dtype and mine_out.shape == their_out.shape
        torch.testing.assert_close(mine_out, their_out, rtol=0.1, atol=0.1)
    for key, gradient in expected_gradients.items():
        assert gradients[key].dtype == gradient.dtype and gradients[key].isfinite().all()


@pytest.mark.parametrize(
    "name, training",
    [
        ("MultiheadAttention", True),
        ("MultiheadAttention", False),
        ("TransformerEncoderLayer", False),
        ("Transformer", True),
        ("LayerNorm", True),
        ("RMSNorm", True),
    ],
)
def test_compiles_to_one_graph(name, training):
    torch.manual_seed(0)
    _, mine = make_pair(name, *MODULES[name][0], dtype=torch.float32, training=training)
    inputs = inputs_of(name)
    options = {}
    if not name.endswith("Norm"):
        mask = torch.nn.Transformer.generate_square_subsequent_mask(5)
        mask_name = {"MultiheadAttention": "attn_mask", "TransformerEncoderLayer": "src_mask"}.get(name, "tgt_mask")
        options = {mask_name: mask}
    torch.compiler.reset()
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    expected, expected_gradients = run(mine, inputs, options)
    mine.zero_grad()
    actual = compiled(*inputs, **options)
    torch.testing.assert_close(first(actual), expected[0])
    # Grad mode on: the compiled backward too.
    actual, gradients = run(compiled, inputs, options)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[key.removeprefix("_orig_mod.")])


def test_exports(name):
    _, mine = make_pair(name, *MODULES[name][0], dtype=torch.float32, training=False)
    inputs = inputs_of(name)
    exported = torch.export.export(mine, tuple(x.clone() for x in inputs))
    torch.testing.assert_close(first(exported.module()(*[x.clone() for x in inputs])), first(mine(*inputs)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("traced_with_grad", [True, False])
def test_traces(name, traced_with_grad):
    """With torch's own checks of the trace, to a graph of ops that can be saved and serves training and inference."""
    _, mine = make_pair(name, *MODULES[name][0], dtype=torch.float32, training=False)
    with torch.set_grad_enabled(traced_with_grad):
        traced = torch.jit.trace(mine, tuple(inputs_of(name)))
    assert "bigmodel::" in str(traced.inlined_graph)
    torch.jit.save(traced, io.BytesIO())
    other = [torch.randn(7, 2, 8)] * MODULES[name][1]
    for with_grad in (True, False):
        expected, expected_gradients = run(mine, other, {}, with_grad)
        actual, gradients = run(traced, other, {}, with_grad)
        torch.testing.assert_close(actual, expected)
        assert gradients.keys() == expected_gradients.keys()
        for key, gradient in expected_gradients.items():
            torch.testing.assert_close(gradients[key], gradient, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("traced_with_grad", [True, False])
def test_linear_traces(traced_with_grad):
    """Whether its product is ours or torch's is for the grad mode otherwise."""
    linear, x = ours.Linear(8, 5), torch.randn(3, 8)
    with torch.set_grad_enabled(traced_with_grad):
        traced = torch.jit.trace(linear, x)
    assert_same(linear, traced, [x], rtol=1e-5, atol=1e-6)


def test_compiles_and_exports_for_any_length():
    torch.manual_seed(0)
    layer = ours.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = ours.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    torch.compiler.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager", dynamic=True)
    length = torch.export.Dim("length", min=2, max=64)
    exported = torch.export.export(encoder, (torch.randn(2, 5, 8),), dynamic_shapes={"src": {1: length}}).module()
    for length in (3, 11):
        x = torch.randn(2, length, 8)
        torch.testing.assert_close(compiled(x), encoder(x))
        torch.testing.assert_close(exported(x), encoder(x))


@pytest.mark.filterwarnings("error")
def test_compiles_with_masks_of_two_types():
    module = ours.MultiheadAttention(8, 2)
    x = torch.randn(5, 3, 8)
    masks = {"attn_mask": torch.zeros(5, 5), "key_padding_mask": torch.zeros(3, 5, dtype=torch.bool)}
    torch.compiler.reset()
    output = torch.compile(module, fullgraph=True, backend="aot_eager")(x, x, x, **masks)[0]
    torch.testing.assert_close(output, module(x, x, x)[0])


@pytest.mark.parametrize("cls", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8)])
@pytest.mark.parametrize("affine", [True, False])
def test_norms(cls, shape, affine):
    torch.manual_seed(0)
    theirs, mine = make_pair(cls, shape, elementwise_affine=affine)
    assert_same(theirs, mine, [torch.randn(4, 2, 3, 8, dtype=torch.float64)])
    assert_same(theirs, mine, [torch.randn(*shape, dtype=torch.float64)])
    assert_same(theirs, mine, [torch.randn(4, 8, 3, 2, dtype=torch.float64).permute(0, 3, 2, 1)])
    if cls == "LayerNorm" and affine:
        assert_same(*make_pair(cls, shape, bias=False, eps=0.1), [torch.randn(4, 2, 3, 8, dtype=torch.float64)])
    if cls == "RMSNorm":
        assert_same(*make_pair(cls, shape, eps=0.1), [1e-3 * torch.randn(4, 2, 3, 8, dtype=torch.float64)])
    for module in (theirs, mine):
        with pytest.raises(RuntimeError, match="normalized_shape"):
            module(torch.randn(4, 2, 3, 7, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_dtypes_that_do_not_fit_raise_what_torch_raises(name, dtype, weights, training):
    theirs, mine = make_pair(name, *MODULES[name][0], dtype=weights, training=training)
    inputs = [torch.ones(5, 3, 8).to(dtype)] * MODULES[name][1]
    try:
        expected = first(theirs(*inputs))
    except RuntimeError:
        with pytest.raises(RuntimeError):
            mine(*inputs)
    else:  # bfloat16 on bfloat16, and what the norms mix
        assert dtype is weights or name.endswith("Norm")
        # Encoder and decoder round to bfloat16 one after the other, at other places than torch's.
        several = {"rtol": 0.05, "atol": 0.05} if name == "Transformer" else {}
        torch.testing.assert_close(first(mine(*inputs)), expected, **several)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("part", ["self_attn", "self_attn.out_proj", "linear1", "linear2", "norm1", "norm2"])
def test_a_part_of_another_dtype_raises_what_torch_raises(part, norm_first):
    x = torch.randn(5, 3, 8)
    for module in make_pair("TransformerEncoderLayer", 8, 2, 16, 0.0, norm_first=norm_first, dtype=torch.float32):
        module.get_submodule(part).double()
        with pytest.raises(RuntimeError, match="dtype"):
            module(x)


def test_linear_raises_what_torch_raises():
    linear = ours.Linear(8, 8).requires_grad_(False)
    for x in (torch.randn(3, 7), torch.randn(3, 8).double(), torch.ones(3, 8, dtype=torch.int64), torch.randn(())):
        with pytest.raises(RuntimeError):
            linear(x)
    linear.bias = torch.nn.Parameter(linear.bias.double())
    with pytest.raises(RuntimeError):
        linear(torch.randn(3, 8))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gate", [None, "hidden", "input"])
@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward(activation, gate, bias):
    """Fused against the chain of its submodules, and against the formula."""
    torch.manual_seed(0)
    module = ours.FeedForward(8, 12, activation, gate, bias=bias).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    residual = torch.randn(2, 5, 8, dtype=torch.float64)
    chained = copy.deepcopy(module)
    chained.forward = lambda x, residual: residual + chained.unfused(x)
    assert_same(chained, module, [x, residual])
    torch.testing.assert_close(module(x) + residual, module(x, residual))

    def linear(layer, x):
        return x @ layer.weight.T + (layer.bias if bias else 0)

    act = ACTIVATIONS[activation]
    hidden = {
        None: lambda: act(linear(module.linear1, x)),
        "hidden": lambda: act(linear(module.gate_proj, x)) * linear(module.linear1, x),
        "input": lambda: act(linear(module.linear1, x * torch.sigmoid(linear(module.gate_proj, x)))),
    }[gate]()
    torch.testing.assert_close(module(x), linear(module.linear2, hidden))


def test_feed_forward_calls_what_is_not_plain(monkeypatch):
    torch.manual_seed(0)
    module = ours.FeedForward(8, 12, gate="input")
    x = torch.randn(2, 8)
    plain = module(x)
    monkeypatch.setattr(functional, "feed_forward", None)  # would fail if called
    handle = module.linear2.register_forward_hook(lambda module, args, output: 2 * output)
    torch.testing.assert_close(module(x), 2 * plain)
    torch.testing.assert_close(module(x, x), x + 2 * plain)
    handle.remove()
    monkeypatch.undo()
    torch.testing.assert_close(module(x), plain)


def test_feed_forward_dropout():
    torch.manual_seed(0)
    module = ours.FeedForward(64, 256, dropout=0.5)
    x = torch.randn(16, 64)
    torch.manual_seed(1)
    dropped = module(x)
    torch.manual_seed(1)
    assert torch.equal(module(x), dropped)
    assert not torch.equal(module(x), dropped)
    assert torch.equal(module.eval()(x), module(x)) and not torch.equal(module(x), dropped)
    everything = ours.FeedForward(64, 256, dropout=1.0)
    torch.testing.assert_close(everything(x), everything.linear2.bias.expand(16, 64))


@pytest.mark.parametrize(
    "arguments",
    [{"width": 0}, {"hidden": -1}, {"activation": "swish"}, {"gate": "output"}],
)
def test_feed_forward_refuses(arguments):
    with pytest.raises(ValueError, match=r"^\[FeedForward\]"):
        ours.FeedForward(**{"width": 8, "hidden": 8, **arguments})
