"""feed_forward: every case on every backend and CPU target, and what torch asks of an op."""

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU_DISPATCHES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_check import DTYPES, EXAMPLES, RANDOM_DTYPES, check_case, check_repeats, dtype_name, leaves, ops_of

import bigmodel_kernels as bmk
from bigmodel_kernels.reference.philox import dropout_keep
from bigmodel_kernels.testing import FEED_FORWARD_CASES, FeedForwardCase
from bigmodel_kernels.testing.layouts import LAYOUTS

CASE = {case.name: case for case in FEED_FORWARD_CASES}
NAMES = ("x", "w1", "b1", "w2", "b2", "w_gate", "b_gate", "residual")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", FEED_FORWARD_CASES, ids=lambda case: case.name)
def test_case(case, dtype, backend):
    check_case(case, dtype, backend)


# Rows enough for kernels that take some through both products together (csrc/cpu/row_products.h): several passes of the
# first product, and of the second; an odd number of rows and of hidden units; a last panel that is not full.
MANY_ROWS = [
    FeedForwardCase("deep", (384,), width=40, hidden=1091, out_width=23, activation="gelu", residual=True),
    FeedForwardCase("wide", (2, 383), width=530, hidden=75, out_width=12, activation="silu", bias=False),
    FeedForwardCase("dropout", (383,), width=24, hidden=553, out_width=50, activation="gelu_tanh", dropout_p=0.3),
    FeedForwardCase("gate", (383,), width=33, hidden=553, activation="silu", gate="hidden", dropout_p=0.3),
    FeedForwardCase("columns", (320,), width=64, hidden=70, layout="transposed", weight_layout="transposed"),
]
on_cpus = pytest.mark.parametrize("backend", CPU_DISPATCHES, ids=lambda dispatch: dispatch[1], indirect=True)


@on_cpus
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", MANY_ROWS, ids=lambda case: case.name)
def test_many_rows(case, dtype, backend):
    check_case(case, dtype, backend)


@on_cpus
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("gate", [None, "hidden"])
def test_many_rows_are_what_few_are(gate, dtype, backend):
    """A row's result depends neither on how many rows there are, as long as they are not few, nor on threads, nor on
    weights being packed in advance."""
    case = FeedForwardCase("rows", (512,), width=136, hidden=1100, activation="gelu", gate=gate, residual=True)
    inputs = case.inputs(dtype)
    part = {name: x[:40] if name in ("x", "residual") else x for name, x in inputs.items()}
    threads = torch.get_num_threads()
    with torch.no_grad():
        whole, packed, again = (case.run(inputs, backend)["output"] for _ in range(3))
        few = case.run(part, backend)["output"]
        torch.set_num_threads(1)
        try:
            alone = case.run(inputs, backend)["output"]
        finally:
            torch.set_num_threads(threads)
    for other in (packed, again, alone):
        assert torch.equal(whole, other)
    assert torch.equal(whole[:40], few)


@on_cpus
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_gradients_of_many_rows_do_not_depend_on_threads(dtype, backend):
    case = FeedForwardCase("threads", (512,), width=72, hidden=320, activation="gelu", dropout_p=0.2)
    inputs = leaves(case.inputs(dtype))
    wanted = [x for x in inputs.values() if x.requires_grad]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (threads, 1):
            torch.set_num_threads(count)
            results.append(torch.autograd.grad(case.run(inputs, backend)["output"].sin().sum(), wanted))
    finally:
        torch.set_num_threads(threads)
    for ours, alone in zip(*results, strict=True):
        assert torch.equal(ours, alone)


@st.composite
def any_case(draw):
    bias = draw(st.booleans())
    return FeedForwardCase(
        "random",
        leading=draw(st.lists(st.integers(0, 12), max_size=3).map(tuple)),
        width=draw(st.integers(1, 80)),
        hidden=draw(st.integers(1, 150)),
        out_width=draw(st.one_of(st.none(), st.integers(1, 80))),
        # testing/cases.py keeps ReLU's arguments away from its kink by the bias.
        activation=draw(st.sampled_from(["gelu", "gelu_tanh", "silu"] + ["relu"] * bias)),
        gate=draw(st.sampled_from([None, "hidden", "input"])),
        bias=bias,
        residual=draw(st.booleans()),
        dropout_p=draw(st.sampled_from([0.0, 0.3])),
        layout=draw(st.sampled_from(LAYOUTS)),
        weight_layout=draw(st.sampled_from(LAYOUTS)),
    )


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=any_case(), dtype=st.sampled_from(RANDOM_DTYPES))
def test_random_case(backend, case, dtype):
    check_case(case, dtype, backend)


@pytest.mark.parametrize("name", ["rows_130_hidden", "rows_130_input", "dropout"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_repeats_bitwise(name, dtype, backend):
    check_repeats(CASE[name], dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_dropout_mask_is_the_reference_s(dtype, backend):
    rows, hidden, p = 23, 70, 0.45
    seed = torch.tensor(-5)
    x, w1 = torch.ones(rows, 1, dtype=dtype), torch.ones(hidden, 1, dtype=dtype)
    identity = torch.eye(hidden, dtype=dtype)
    output = bmk.feed_forward(x, w1, None, identity, None, dropout_p=p, dropout_seed=seed, backend=backend)
    assert torch.equal(output != 0, dropout_keep(1, 1, rows, hidden, p, seed)[0, 0])


def test_recomputed_preactivations_give_the_same_gradients(backend):
    """The op called without saving its preactivations, as a checkpointing caller may."""
    for name in ("silu_hidden", "gelu_input", "relu_plain"):
        case = CASE[name]
        inputs = leaves(case.inputs(torch.float32))
        arguments = [inputs.get(each) for each in NAMES]
        wanted = [x for x in arguments if x is not None]
        grads = []
        for save in (True, False):
            options = {"activation": case.activation, "gate": case.gate or "none", "save_preactivation": save}
            output, preactivation, _ = ops_of(backend).feed_forward(*arguments, **options)
            assert (preactivation.numel() > 0) == save
            grads.append(torch.autograd.grad(output.sin().sum(), wanted))
        for saved, recomputed in zip(*grads, strict=True):
            torch.testing.assert_close(saved, recomputed)


@pytest.mark.parametrize("gate", [None, "hidden", "input"])
def test_each_gradient_alone(gate, backend):
    case = FeedForwardCase("alone", gate=gate, residual=True, activation="gelu")
    inputs = leaves(case.inputs(torch.float32))
    grads = torch.autograd.grad(case.run(inputs, backend)["output"].sin().sum(), list(inputs.values()))
    for wanted, expected in zip(inputs, grads, strict=True):
        alone = {name: x.detach().requires_grad_(name == wanted) for name, x in inputs.items()}
        (grad,) = torch.autograd.grad(case.run(alone, backend)["output"].sin().sum(), [alone[wanted]])
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_packed_weights_change_nothing(dtype, backend):
    case = FeedForwardCase("packed", (17,), width=136, hidden=128, gate="hidden", activation="silu")
    inputs = case.inputs(dtype)
    with torch.no_grad():
        first, second, third = (case.run(inputs, backend)["output"] for _ in range(3))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(first, second, rtol=4 * eps, atol=4 * eps)
    assert torch.equal(second, third)


def test_opcheck(backend):
    for name in ("gelu_input", "dropout_hidden", "no_bias"):
        case = CASE[name]
        inputs = leaves(case.inputs(torch.float32))
        arguments = (*(inputs.get(each) for each in NAMES), None, None, None, inputs.get("dropout_seed"))
        for save in (False, True):
            options = {
                "activation": case.activation,
                "gate": case.gate or "none",
                "dropout_p": case.dropout_p,
                "save_preactivation": save,
            }
            result = torch.library.opcheck(ops_of(backend).feed_forward.default, arguments, options)
            assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("gate", [None, "hidden", "input"])
def test_gradcheck_in_float64(gate):
    case = FeedForwardCase(
        "small",
        leading=(2,),
        width=3,
        hidden=4,
        out_width=2,
        gate=gate,
        activation="gelu",
        residual=True,
        dropout_p=0.3,
    )
    inputs = case.inputs(torch.float64)
    names = [name for name, x in inputs.items() if x.is_floating_point()]

    def function(*tensors):
        return case.run({**inputs, **dict(zip(names, tensors, strict=True))})["output"]

    tensors = tuple(inputs[name].requires_grad_() for name in names)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_double_backward_goes_to_the_reference(backend):
    case = CASE["dropout_hidden"]

    def second(each):
        inputs = leaves(case.inputs(torch.float32))
        wanted = [x for x in inputs.values() if x.requires_grad]
        output = case.run(inputs, each)["output"]
        grads = torch.autograd.grad(output.sin().sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), wanted)

    for ours, theirs in zip(second(backend), second("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole(compiler, backend):
    case = CASE["dropout_hidden"]
    inputs = case.inputs(torch.float32)

    def function(tensors):
        return case.run(tensors, backend)["output"]

    results = []
    for each in (torch.compile(function, fullgraph=True, backend=compiler), function):
        tensors = leaves(inputs)
        output = each(tensors)
        output.square().sum().backward()
        results.append([output, *(x.grad for x in tensors.values() if x.requires_grad)])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


def test_compiled_dropout_draws_anew(backend):
    x, w1, w2 = torch.randn(4, 8), torch.randn(32, 8), torch.randn(8, 32)

    def function(x):
        return bmk.feed_forward(x, w1, None, w2, None, dropout_p=0.5, backend=backend)

    compiled = torch.compile(function, fullgraph=True)
    assert not torch.equal(compiled(x), compiled(x))


def test_autocast_gives_torch_s_dtype(backend):
    x, w1, w2 = torch.randn(4, 8), torch.randn(32, 8, requires_grad=True), torch.randn(8, 32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = bmk.feed_forward(x, w1, None, w2, None, residual=x, backend=backend)
        theirs = F.linear(F.relu(F.linear(x, w1)), w2) + x
    assert ours.dtype == theirs.dtype == torch.float32
    ours.sum().backward()
    assert w1.grad.dtype == torch.float32
