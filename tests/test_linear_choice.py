"""Linear layers of others' models: swapped where ours is the faster one, and computed by ours in those calls alone."""

import copy
import itertools
import pickle

import pytest
import torch

import bigmodel_kernels as bmk
from bigmodel_kernels import functional, linear_choice
from bigmodel_kernels.testing.tolerance import FORWARD, GRADIENT, assert_as_exact


def let(monkeypatch, **limits):
    """Makes such calls ours, whatever this machine is."""
    row = linear_choice.Row("said so", **limits)
    monkeypatch.setattr(linear_choice, "row_for", lambda device, dtype, transposed=False: row)


@pytest.fixture
def all_ours(monkeypatch):
    let(monkeypatch)


@pytest.fixture
def calls(monkeypatch):
    """The shapes of bmk.linear's inputs."""
    seen, linear = [], functional.linear

    def spy(x, *args, **kwargs):
        seen.append(tuple(x.shape))
        return linear(x, *args, **kwargs)

    monkeypatch.setattr(functional, "linear", spy)
    return seen


SHAPES = ((4,), (2, 2), (5,), (2, 3), (), (1,))


@pytest.mark.parametrize(
    ("limits", "ours"),
    [
        ({"most_rows": 4}, [(4, 6), (2, 2, 6), (6,), (1, 6)]),
        ({"least_rows": 2}, [(4, 6), (2, 2, 6), (5, 6), (2, 3, 6)]),
        ({"least_products": 5 * 6 * 3}, [(5, 6), (2, 3, 6)]),
        ({"most_rows": 1, "small_products": 4 * 6 * 3}, [(4, 6), (2, 2, 6), (6,), (1, 6)]),
        ({"least_recorded_rows": 5}, [(5, 6), (2, 3, 6)]),
    ],
)
def test_only_calls_that_the_row_names_are_ours(limits, ours, monkeypatch, calls):
    let(monkeypatch, **limits)
    layer = torch.nn.Linear(6, 3)
    expected = [layer(torch.ones(*shape, 6)) for shape in SHAPES]
    assert bmk.replace_modules(layer).swapped == {"(model)": "Linear"} and type(layer) is bmk.nn.Linear
    for shape, each in zip(SHAPES, expected, strict=True):
        torch.testing.assert_close(layer(torch.ones(*shape, 6)), each)
    assert calls == ours
    if "least_recorded_rows" in limits:
        with torch.no_grad():
            layer(torch.ones(4, 6))
        assert calls == [*ours, (4, 6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients(dtype, bias, all_ours, calls):
    torch.manual_seed(0)
    theirs = torch.nn.Linear(33, 17, bias=bias).to(dtype)
    ours, exact = copy.deepcopy(theirs), copy.deepcopy(theirs).double()
    bmk.replace_modules(ours)
    x, grad = torch.randn(2, 5, 33).to(dtype), torch.randn(2, 5, 17).to(dtype)
    results = []
    for layer in (theirs, ours, exact):
        given = x.detach().to(layer.weight.dtype, copy=True).requires_grad_()
        out = layer(given)
        out.backward(grad.to(out.dtype))
        results.append([out.detach(), given.grad, *(p.grad for p in layer.parameters())])
    assert len(calls) == 1
    for index, (expected, actual, truth) in enumerate(zip(*results, strict=True)):
        assert_as_exact(str(index), actual, expected, truth, GRADIENT if index else FORWARD, dtype)


def test_autocast_decides_by_the_dtype_that_it_computes_in(monkeypatch, calls):
    rows = {torch.float32: None, torch.bfloat16: linear_choice.Row("all")}
    monkeypatch.setattr(linear_choice, "row_for", lambda device, dtype, transposed=False: rows[dtype])
    layer = bmk.nn.Linear(6, 3)
    x = torch.randn(5, 6)
    layer(x)
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert calls == [(5, 6)]


def test_errors_are_torchs(all_ours):
    layer = bmk.nn.Linear(6, 3)
    with pytest.raises(RuntimeError, match="dtype"):
        layer(torch.ones(2, 6, dtype=torch.bfloat16))


def test_is_a_linear_layer_to_everyone_else(all_ours):
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    names, hooked = list(model.state_dict()), []
    handle = model[0].register_forward_hook(lambda module, args, output: hooked.append(type(module)))
    model.eval()
    x = torch.randn(4, 6)
    expected = model(x)
    report = bmk.replace_modules(model)
    assert report.swapped == {"0": "Linear", "2": "Linear"} and list(model.state_dict()) == names
    assert isinstance(model[0], torch.nn.Linear) and not model[0].training
    torch.testing.assert_close(model(x), expected)
    assert hooked[1] is bmk.nn.Linear
    handle.remove()
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(each(x), expected)
    fresh = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(x), expected)
    compiled = torch.compile(model[2], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model[2](x))


class Doubled(torch.nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_what_may_compute_something_else_is_left(all_ours):
    model = torch.nn.ModuleDict({name: torch.nn.Linear(6, 6) for name in ("normed", "patched", "plain")})
    model["doubled"] = Doubled(6, 6)
    torch.nn.utils.parametrizations.weight_norm(model["normed"])
    model["patched"].forward = lambda x: x
    report = bmk.replace_modules(model)
    assert report.swapped == {"plain": "Linear"}
    assert "subclass of torch.nn.Linear" in report.left["doubled"]
    assert "parametrized" in report.left["normed"] and "forward was replaced" in report.left["patched"]


def test_the_report_says_where_and_why(monkeypatch):
    monkeypatch.setattr(linear_choice, "why_unmeasured", lambda dtype, target: None)
    row = linear_choice.Row("up to 7 rows", most_rows=7, least_products=7 * 36)
    monkeypatch.setattr(linear_choice, "TABLES", {bmk._C.cpu_target(): {(torch.float16, False): row}})
    model = torch.nn.ModuleList([torch.nn.Linear(6, 6), torch.nn.Linear(6, 6), torch.nn.Linear(6, 6).half()])
    model += [torch.nn.Linear(6, 6, device="meta"), torch.nn.Linear(6, 5).half()]
    report = bmk.replace_modules(model)
    assert report.why == {"2": "up to 7 rows"} and report.left["0"] == "ours is not faster in float32"
    assert "too small" in report.left["4"]
    text = str(report)
    assert "2: Linear (up to 7 rows)" in text and "0 and 1 more: ours is not faster in float32" in text
    assert "on meta" in text


def test_what_has_not_been_measured_is_not_claimed(monkeypatch):
    monkeypatch.setattr(linear_choice, "_torch_has_instructions", lambda dtype: False)
    best = {"avx2": "avx2", "baseline": "avx2", "amx": "amx", "avx512bf16": "avx512bf16"}
    for (target, on), amd in itertools.product(best.items(), (True, False)):
        linear_choice.why_unmeasured.cache_clear()
        monkeypatch.setattr(bmk._C, "supported_cpu_targets", lambda on=on: [on, "baseline"])
        monkeypatch.setattr(linear_choice.machine, "is_amd", lambda amd=amd: amd)
        said = linear_choice.why_unmeasured(torch.float32, target)
        assert (said is None) == (target == "avx2" or target == "avx512bf16" and amd)
        assert said is None or target in said or on in said
    linear_choice.why_unmeasured.cache_clear()
    monkeypatch.setattr(bmk._C, "supported_cpu_targets", lambda: ["avx2"])
    monkeypatch.setattr(linear_choice, "_torch_has_instructions", lambda dtype: True)
    assert "torch has instructions for bfloat16" in linear_choice.why_unmeasured(torch.bfloat16, "avx2")
    assert linear_choice.why_unmeasured(torch.float32, "avx2") is None
    assert "no float64" in linear_choice.why_unmeasured(torch.float64, "avx2")
    monkeypatch.setattr(bmk._C, "supported_cpu_targets", lambda: ["avx512bf16"])
    monkeypatch.setattr(linear_choice.machine, "is_amd", lambda: True)
    assert "torch has instructions for float16" in linear_choice.why_unmeasured(torch.float16, "avx512bf16")
    assert linear_choice.why_unmeasured(torch.bfloat16, "avx512bf16") is None
    linear_choice.why_unmeasured.cache_clear()


def test_layers_without_features():
    """torch answers, and so do we."""
    for inputs, outputs in ((0, 4), (4, 0)):
        layer = bmk.nn.Linear(inputs, outputs)
        theirs = torch.nn.functional.linear(torch.zeros(2, inputs), layer.weight, layer.bias)
        torch.testing.assert_close(layer(torch.zeros(2, inputs)), theirs)
        with torch.no_grad():
            torch.testing.assert_close(layer(torch.zeros(2, inputs)), theirs)
