"""linear: every case on every backend and CPU target, packed weights, and what torch asks of an op."""

import gc

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU_DISPATCHES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_check import DTYPES, EXAMPLES, RANDOM_DTYPES, check_case, check_repeats, device_of, dtype_name, leaves, ops_of

import bigmodel_kernels as bmk
from bigmodel_kernels.ops import direct, packed_weights
from bigmodel_kernels.testing import FORWARD, LINEAR_CASES, LinearCase, assert_as_exact
from bigmodel_kernels.testing.layouts import LAYOUTS

CASE = {case.name: case for case in LINEAR_CASES}
ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu"]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", LINEAR_CASES, ids=lambda case: case.name)
def test_case(case, dtype, backend):
    check_case(case, dtype, backend)


@st.composite
def any_case(draw):
    bias = draw(st.booleans())
    return LinearCase(
        "random",
        leading=draw(st.lists(st.integers(0, 12), max_size=3).map(tuple)),
        in_features=draw(st.integers(1, 150)),
        out_features=draw(st.integers(1, 150)),
        bias=bias,
        # testing/cases.py keeps ReLU's arguments away from its kink by the bias.
        activation=draw(st.sampled_from([each for each in ACTIVATIONS if bias or each != "relu"])),
        residual=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        weight_layout=draw(st.sampled_from(LAYOUTS)),
    )


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=any_case(), dtype=st.sampled_from(RANDOM_DTYPES))
def test_random_case(backend, case, dtype):
    check_case(case, dtype, backend)


@pytest.mark.parametrize("name", ["130x100x70", "gelu_residual", "deep"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_repeats_bitwise(name, dtype, backend):
    check_repeats(CASE[name], dtype, backend)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_arguments_of_activations(activation, backend):
    """Far tails: no NaN, no infinity where the activation has none."""
    x = torch.tensor([-1e30, -1e4, -90.0, -30.0, -10.0, -0.0, 0.0, 1e-30, 10.0, 90.0, 1e4, 1e30])[:, None]
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    ours = bmk.linear(x, torch.ones(1, 1), activation=activation, backend=backend)
    truth = bmk.linear(wide, torch.ones(1, 1, dtype=torch.float64), activation=activation)
    torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(ours.sum(), x)
    (true_grad,) = torch.autograd.grad(truth.sum(), wide)
    torch.testing.assert_close(grad.double(), true_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("rows", [1, 3, 5, 32, 40])
@pytest.mark.parametrize("width", [1, 13, 33, 520])
def test_what_lies_beside_a_row_does_not_matter(width, rows, dtype, backend):
    """Neighbours in memory that are no numbers: other rows, and what surrounds the tensor."""
    device = device_of(backend)
    memory = torch.full((rows + 2, width), float("nan"), dtype=dtype, device=device)
    x, weight = memory[1:-1], torch.ones(7, width, dtype=dtype, device=device)
    x[::2] = 1.0
    output = bmk.linear(x, weight, backend=backend)
    assert (output[::2] == width).all() and output[1::2].isnan().all()


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "residual"])
def test_one_gradient_alone(wanted, backend):
    case = CASE["gelu_residual"]
    inputs = leaves(case.inputs(torch.float32))
    everything = torch.autograd.grad(case.run(inputs, backend)["output"].sum(), list(inputs.values()))
    expected = dict(zip(inputs, everything, strict=True))[wanted]
    inputs = {name: x.detach().requires_grad_(name == wanted) for name, x in inputs.items()}
    (grad,) = torch.autograd.grad(case.run(inputs, backend)["output"].sum(), [inputs[wanted]])
    torch.testing.assert_close(grad, expected, rtol=0, atol=0)


def test_opcheck(backend):
    for case in (CASE["gelu_residual"], CASE["no_bias"], CASE["transposed"]):
        inputs = leaves(case.inputs(torch.float32))
        arguments = tuple(inputs.get(name) for name in ("x", "weight", "bias", "residual"))
        for save in (False, True):
            options = {"activation": case.activation or "none", "save_preactivation": save}
            result = torch.library.opcheck(ops_of(backend).linear.default, arguments, options)
            assert set(result.values()) == {"SUCCESS"}


def test_opcheck_of_packing():
    # Not the checks that compare packed bytes: those between the panels are never written or read.
    result = torch.library.opcheck(
        torch.ops.bigmodel.linear_pack.default,
        (torch.randn(33, 65),),
        test_utils=("test_schema", "test_autograd_registration"),
    )
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_in_float64(activation):
    case = LinearCase("small", leading=(2,), in_features=3, out_features=4, activation=activation, residual=True)
    tensors = tuple(x.requires_grad_() for x in case.inputs(torch.float64).values())

    def function(x, weight, bias, residual):
        return bmk.linear(x, weight, bias, activation, residual)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_double_backward_goes_to_the_reference(backend):
    def second(each):
        inputs = leaves(CASE["silu_residual"].inputs(torch.float32))
        wanted = list(inputs.values())
        output = CASE["silu_residual"].run(inputs, each)["output"]
        grads = torch.autograd.grad(output.sin().sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), wanted)

    for ours, theirs in zip(second(backend), second("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole(compiler, backend):
    inputs = CASE["gelu_residual"].inputs(torch.float32)

    def function(tensors):
        return bmk.linear(**tensors, activation="gelu", backend=backend)

    results = []
    for each in (torch.compile(function, fullgraph=True, backend=compiler), function):
        tensors = leaves(inputs)
        output = each(tensors)
        output.square().sum().backward()
        results.append([output, *(x.grad for x in tensors.values())])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("residual_dtype", [None, torch.float32, torch.bfloat16])
def test_autocast_gives_torch_s_dtype(residual_dtype, backend):
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    residual = None if residual_dtype is None else torch.randn(3, 5, dtype=residual_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        ours = bmk.linear(x, weight, residual=residual, backend=backend)
        theirs = F.linear(x, weight)
        theirs = theirs if residual is None else theirs + residual
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    ours.sum().backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", CPU_DISPATCHES, ids=lambda dispatch: dispatch[1], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("rows", [3, 12, 16, 24, 32, 40])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "positive"])
def test_long_sums(signed, rows, dtype, backend):
    """However many rows there are, and so whichever way the product goes: rounding errors do not pile up along k."""
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(size, 14336, generator=generator) for size in (rows, 112))
    x, weight = (value if signed else value.abs() for value in (x.to(dtype), weight.to(dtype)))
    output = bmk.linear(x, weight, backend=backend)
    reference = bmk.linear(x, weight, backend="reference")
    truth = bmk.linear(x.double(), weight.double())
    assert_as_exact("output", output, reference, truth, FORWARD, dtype)


@pytest.mark.parametrize("backend", CPU_DISPATCHES, ids=lambda dispatch: dispatch[1], indirect=True)
class TestPackedWeights:
    """The cache of packed weights is invisible: right results whatever happens to the weight."""

    @pytest.fixture(autouse=True)
    def empty_cache(self):
        packed_weights.clear()
        yield
        packed_weights.clear()

    @staticmethod
    def check(x, weight, backend):
        with torch.no_grad():
            for _ in range(3):
                output = bmk.linear(x, weight, backend=backend)
                reference = bmk.linear(x, weight, backend="reference")
                truth = bmk.linear(x.double(), weight.double())
                assert_as_exact("output", output, reference, truth, FORWARD, x.dtype)

    @pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
    def test_reused(self, dtype, backend):
        x, weight = torch.randn(40, 130, dtype=dtype), torch.randn(140, 130, dtype=dtype)
        self.check(x, weight, backend)
        assert packed_weights.packed_bytes() > 0

    def test_every_kind_of_change_is_seen(self, backend):
        x, weight = torch.randn(40, 130), torch.nn.Parameter(torch.randn(140, 130))
        self.check(x, weight, backend)
        with torch.no_grad():
            weight.mul_(2)
        self.check(x, weight, backend)
        weight.data = torch.randn(140, 130)
        self.check(x, weight, backend)
        weight.data.add_(1)
        self.check(x, weight, backend)
        weight.detach().numpy()[:] *= 3
        self.check(x, weight, backend)
        weight.data[3].zero_()
        self.check(x, weight, backend)
        weight.detach().numpy()[:, 5] = 0
        self.check(x, weight, backend)
        weight.data[139, 129] += 1
        self.check(x, weight, backend)
        optimizer = torch.optim.SGD([weight], lr=0.1)
        bmk.linear(x, weight, backend=backend).square().sum().backward()
        optimizer.step()
        self.check(x, weight, backend)

    @pytest.mark.parametrize("layout", ["rows", "columns", "spread"])
    @pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
    def test_fingerprints_tell_every_element(self, dtype, layout, backend):
        shape = {"rows": (5, 71), "columns": (71, 5), "spread": (10, 142)}[layout]
        weight = torch.randn(shape, dtype=dtype)
        weight = {"rows": weight, "columns": weight.t(), "spread": weight[::2, ::2]}[layout]
        fingerprint = direct.OPS.weight_fingerprint
        seen = {fingerprint(weight)}
        assert seen == {fingerprint(weight)}
        for i in range(5):
            for j in range(71):
                weight[i, j] += 1
                seen.add(fingerprint(weight))
        assert len(seen) == 5 * 71 + 1

    @pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
    def test_fingerprints_tell_changes_that_might_undo_each_other(self, dtype, backend):
        """Neighbours of one hash change by multiples of each other, and in their signs alone."""
        fingerprint = direct.OPS.weight_fingerprint
        bits = torch.zeros(40, 5, dtype=torch.int32 if dtype == torch.float32 else torch.int16)
        top = -(2 ** (bits.element_size() * 8 - 1))
        changes = [top, *(sign * factor for factor in (1, 2, 31, 32, 33, 1024) for sign in (1, -1))]
        seen = {fingerprint(bits.view(dtype))}
        for row in range(8):
            for first in changes:
                for second in changes:
                    bits[row, 0], bits[row + 1, 0] = first, second
                    seen.add(fingerprint(bits.view(dtype)))
                    bits[row, 0] = bits[row + 1, 0] = 0
        assert len(seen) == 8 * len(changes) ** 2 + 1

    def test_views_of_one_weight(self, backend):
        x, weight = torch.randn(40, 130), torch.randn(280, 130)
        for _ in range(3):
            self.check(x, weight[:140], backend)
            self.check(x, weight[140:], backend)
        self.check(torch.randn(40, 140), weight[:140].t(), backend)

    def test_forgets_dead_weights(self, backend):
        weight = torch.randn(140, 130)
        self.check(torch.randn(40, 130), weight, backend)
        assert packed_weights.packed_bytes() > 0
        del weight
        gc.collect()
        assert packed_weights.packed_bytes() == 0

    def test_is_bounded(self, backend, monkeypatch):
        weights = [torch.randn(128, 128) for _ in range(8)]
        self.check(torch.randn(40, 128), weights[0], backend)
        one = packed_weights.packed_bytes()
        packed_weights.clear()
        monkeypatch.setattr(packed_weights, "LIMIT_BYTES", 3 * one)
        for _ in range(4):
            for weight in weights:
                self.check(torch.randn(40, 128), weight, backend)
                assert packed_weights.packed_bytes() <= 3 * one
        assert packed_weights.packed_bytes() == 3 * one

    def test_survives_a_change_of_target(self, backend):
        x, weight = torch.randn(40, 130), torch.randn(140, 130)
        target = bmk.cpu_target()
        for each in bmk.supported_cpu_targets():
            bmk.set_cpu_target(each)
            self.check(x, weight, backend)
        bmk.set_cpu_target(target)

    def test_not_used_for_a_weight_that_learns(self, backend):
        x, weight = torch.randn(40, 130), torch.randn(140, 130, requires_grad=True)
        for _ in range(3):
            bmk.linear(x, weight, backend=backend).sum().backward()
        assert packed_weights.packed_bytes() == 0
