"""add_norm: every case on every backend and CPU target, and what torch asks of an op."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_check import DTYPES, EXAMPLES, RANDOM_DTYPES, check_case, check_repeats, dtype_name, leaves, ops_of

import bigmodel_kernels as bmk
from bigmodel_kernels.testing import ADD_NORM_CASES, AddNormCase
from bigmodel_kernels.testing.layouts import LAYOUTS

CASE = {case.name: case for case in ADD_NORM_CASES}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", ADD_NORM_CASES, ids=lambda case: case.name)
def test_case(case, dtype, backend):
    check_case(case, dtype, backend)


@st.composite
def any_case(draw):
    """Not LayerNorm of one element: its output is constant, and its gradient rounding only."""
    kind = draw(st.sampled_from(["layer", "rms"]))
    return AddNormCase(
        "random",
        leading=draw(st.lists(st.integers(0, 12), max_size=3).map(tuple)),
        width=draw(st.integers(2 if kind == "layer" else 1, 300)),
        kind=kind,
        residual=draw(st.booleans()),
        weight=draw(st.booleans()),
        bias=draw(st.booleans()),
        float32_parameters=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
    )


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=any_case(), dtype=st.sampled_from(RANDOM_DTYPES))
def test_random_case(backend, case, dtype):
    check_case(case, dtype, backend)


@pytest.mark.parametrize("name", ["rows_257_layer", "rows_257_rms"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_repeats_bitwise(name, dtype, backend):
    check_repeats(CASE[name], dtype, backend)


def test_agrees_with_torch(backend):
    x, residual, weight, bias = torch.randn(3, 5, 64), torch.randn(3, 5, 64), torch.randn(64), torch.randn(64)
    total, normed = bmk.add_norm(x, residual, weight, bias, backend=backend)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(normed, F.layer_norm(x + residual, (64,), weight, bias))
    total, normed = bmk.add_norm(x, None, weight, kind="rms", eps=1e-6, backend=backend)
    assert total is x
    torch.testing.assert_close(normed, F.rms_norm(x, (64,), weight, eps=1e-6))


def test_large_mean(backend):
    """A mean a thousand times the deviation: the variance must not be a difference of large squares."""
    x = torch.randn(4, 256) + 1000
    _, normed = bmk.add_norm(x, None, None, backend=backend)
    truth = F.layer_norm(x.double(), (256,))
    torch.testing.assert_close(normed.double(), truth, rtol=1e-3, atol=1e-3)


def test_constant_rows(backend):
    """Variance 0: eps alone keeps the result finite."""
    x = torch.full((3, 40), 7.0, requires_grad=True)
    for kind in ("layer", "rms"):
        _, normed = bmk.add_norm(x, None, torch.ones(40), kind=kind, backend=backend)
        torch.testing.assert_close(normed, torch.full_like(x, 0.0 if kind == "layer" else 1.0), rtol=1e-5, atol=1e-5)
        (grad,) = torch.autograd.grad(normed.sum(), x)
        assert torch.isfinite(grad).all()


def test_gradient_of_one_output_alone(backend):
    for use in ("sum", "normed"):
        grads = []
        for each in (backend, "reference"):
            inputs = leaves(CASE["three_dimensions_layer"].inputs(torch.float32))
            output = CASE["three_dimensions_layer"].run(inputs, each)[use].sin().sum()
            grads.append(torch.autograd.grad(output, list(inputs.values()), allow_unused=True))
        for ours, theirs in zip(*grads, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wanted", ["x", "residual", "weight", "bias"])
def test_one_gradient_alone(wanted, backend):
    case = CASE["rows_257_layer"]
    inputs = leaves(case.inputs(torch.float32))
    grads = torch.autograd.grad(case.run(inputs, backend)["normed"].sin().sum(), list(inputs.values()))
    expected = dict(zip(inputs, grads, strict=True))[wanted]
    inputs = {name: x.detach().requires_grad_(name == wanted) for name, x in inputs.items()}
    (grad,) = torch.autograd.grad(case.run(inputs, backend)["normed"].sin().sum(), [inputs[wanted]])
    torch.testing.assert_close(grad, expected, rtol=0, atol=0)


def test_opcheck(backend):
    for name in ("three_dimensions_layer", "no_residual_rms", "no_bias_rms", "no_parameters_layer", "transposed_layer"):
        inputs = leaves(CASE[name].inputs(torch.float32))
        result = torch.library.opcheck(
            ops_of(backend).add_norm.default, tuple(inputs.values()), {"kind": CASE[name].kind}
        )
        assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("residual", [True, False])
def test_gradcheck_in_float64(kind, residual):
    case = AddNormCase("small", leading=(2,), width=5, kind=kind, residual=residual)
    inputs = case.inputs(torch.float64)
    names = [name for name, x in inputs.items() if x is not None]

    def function(*tensors):
        return tuple(case.run({**inputs, **dict(zip(names, tensors, strict=True))}).values())

    tensors = tuple(inputs[name].requires_grad_() for name in names)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("name", ["three_dimensions_layer", "three_dimensions_rms", "no_residual_layer"])
def test_double_backward_goes_to_the_reference(name, backend):
    def second(each):
        inputs = leaves(CASE[name].inputs(torch.float32))
        wanted = [x for x in inputs.values() if x is not None]
        outputs = CASE[name].run(inputs, each)
        grads = torch.autograd.grad(sum(x.sin().sum() for x in outputs.values()), wanted, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), wanted)

    for ours, theirs in zip(second(backend), second("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole(compiler, backend):
    case = CASE["three_dimensions_layer"]
    inputs = case.inputs(torch.float32)

    def function(tensors):
        return tuple(case.run(tensors, backend).values())

    results = []
    for each in (torch.compile(function, fullgraph=True, backend=compiler), function):
        tensors = leaves(inputs)
        outputs = each(tensors)
        sum(x.square().sum() for x in outputs).backward()
        results.append([*outputs, *(x.grad for x in tensors.values())])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


def test_autocast_leaves_the_dtype_alone(backend):
    x, weight = torch.randn(3, 16), torch.randn(16)
    with torch.autocast("cpu", torch.bfloat16):
        total, normed = bmk.add_norm(x, x, weight, backend=backend)
        mixed, _ = bmk.add_norm(x.bfloat16(), x, weight, backend=backend)
    assert total.dtype == normed.dtype == mixed.dtype == torch.float32
