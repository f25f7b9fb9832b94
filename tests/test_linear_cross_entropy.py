"""linear_cross_entropy: every case on every backend, memory, and what torch asks of an op."""

import pytest
import torch
import torch.nn.functional as F
from bigmodel_bench.memory import peak_extra_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_check import (
    DTYPES,
    EXAMPLES,
    INTERPRETED,
    RANDOM_DTYPES,
    check_case,
    check_repeats,
    device_of,
    dtype_name,
    leaves,
    ops_of,
)

import bigmodel_kernels as bmk
from bigmodel_kernels.testing import LINEAR_CROSS_ENTROPY_CASES, LinearCrossEntropyCase
from bigmodel_kernels.testing.layouts import LAYOUTS

CASE = {case.name: case for case in LINEAR_CROSS_ENTROPY_CASES}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", LINEAR_CROSS_ENTROPY_CASES, ids=lambda case: case.name)
def test_case(case, dtype, backend):
    if backend == "triton" and INTERPRETED and case.vocabulary > 1000 and dtype != torch.float16:
        pytest.skip("the interpreter takes seconds for a large vocabulary: fp16, which has the most steps, is run")
    check_case(case, dtype, backend)


@st.composite
def any_case(draw):
    return LinearCrossEntropyCase(
        "random",
        leading=draw(st.lists(st.integers(0, 9), max_size=3).map(tuple)),
        width=draw(st.integers(1, 100)),
        vocabulary=draw(st.integers(1, 700)),
        bias=draw(st.booleans()),
        ignored=draw(st.sampled_from([None, "all"])),
        label_smoothing=draw(st.sampled_from([0.0, 0.1])),
        z_loss=draw(st.sampled_from([0.0, 1e-3])),
        softcap=draw(st.sampled_from([None, 3.0])),
        reduction=draw(st.sampled_from(["none", "mean", "sum"])),
        layout=draw(st.sampled_from(LAYOUTS)),
        weight_layout=draw(st.sampled_from(LAYOUTS)),
    )


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=any_case(), dtype=st.sampled_from(RANDOM_DTYPES))
def test_random_case(backend, case, dtype):
    check_case(case, dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_repeats_bitwise(dtype, backend):
    check_repeats(CASE["everything"], dtype, backend)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_agrees_with_torch(reduction, label_smoothing, backend):
    hidden, weight, bias = torch.randn(4, 9, 24), torch.randn(130, 24), torch.randn(130)
    target = torch.randint(0, 130, (4, 9))
    target[1, 3:] = -100
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    ours = bmk.linear_cross_entropy(hidden, weight, target, bias, **options, backend=backend)
    theirs = F.cross_entropy(F.linear(hidden, weight, bias).flatten(0, 1), target.flatten(), **options)
    torch.testing.assert_close(ours, theirs.view(target.shape) if reduction == "none" else theirs)


def test_all_ignored_is_zero_not_nan(backend):
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    loss = bmk.linear_cross_entropy(hidden, weight, torch.full((5,), -100), backend=backend)
    assert loss == 0
    loss.backward()
    assert not hidden.grad.any() and not weight.grad.any()


def test_ignored_rows_spoil_neither_the_loss_nor_their_gradient(backend):
    """grad_weight takes 0 * NaN of them, as the plain form does."""
    hidden, weight = torch.randn(5, 8), torch.randn(20, 8)
    hidden[2] = torch.nan
    hidden.requires_grad_()
    target = torch.tensor([1, 2, -100, 3, 4])
    loss = bmk.linear_cross_entropy(hidden, weight, target, backend=backend)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(hidden.grad).all() and not hidden.grad[2].any()


def test_nan_and_large_logits(backend):
    weight, target = torch.eye(4), torch.tensor([0, 1])
    hidden = torch.tensor([[1e4, 0.0, 0.0, -1e4], [-300.0, -301.0, -300.0, -305.0]])
    ours = bmk.linear_cross_entropy(hidden, weight, target, reduction="none", backend=backend)
    torch.testing.assert_close(ours, F.cross_entropy(hidden, target, reduction="none"))
    hidden[0, 2] = torch.nan
    ours = bmk.linear_cross_entropy(hidden, weight, target, reduction="none", backend=backend)
    assert torch.isnan(ours[0]) and torch.isfinite(ours[1])


def test_small_gradients_survive_float16(backend):
    """A mean over many rows of a large vocabulary: probabilities times 1 / rows are below fp16's smallest number."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(256, 64, dtype=torch.float16), (torch.randn(2048, 64) / 8).half()
    target = torch.randint(0, 2048, (256,))
    grads = []
    for dtype, each in ((torch.float16, backend), (torch.float64, "reference")):
        x = hidden.to(dtype).requires_grad_()
        loss = 1e-4 * bmk.linear_cross_entropy(x, weight.to(dtype), target, reduction="mean", backend=each)
        grads.append(torch.autograd.grad(loss.double() * 1e4 * 256, x, retain_graph=False)[0].double())
    torch.testing.assert_close(*grads, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_memory(dtype, backend):
    """Neither pass holds the logits: the bound is a small part of them, which the plain form must exceed."""
    if backend != "cpu":
        pytest.skip("it reads what the process holds, CPU memory; a GPU's chunks are held to their bound below")
    rows, width, vocabulary = 512, 32, 60000
    hidden, weight = torch.randn(rows, width, dtype=dtype), torch.randn(vocabulary, width, dtype=dtype)
    hidden.requires_grad_(), weight.requires_grad_()
    target = torch.randint(0, vocabulary, (rows,))
    logits_bytes = rows * vocabulary * dtype.itemsize
    gradient_bytes = (hidden.numel() + weight.numel()) * dtype.itemsize

    def run(each):
        loss = bmk.linear_cross_entropy(hidden, weight, target, backend=each)
        return torch.autograd.grad(loss, (hidden, weight))

    assert peak_extra_bytes(lambda: run("reference")) > logits_bytes
    # 16 MB of the logits' gradient at a time, a 16 MB chunk of a packed operand at most, and per thread some blocks.
    assert peak_extra_bytes(lambda: run(backend)) < gradient_bytes + (40 << 20) < gradient_bytes + logits_bytes


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_gradient_in_many_passes(dtype, backend, monkeypatch):
    """Chunks of the logits' gradient are bounded, and a vocabulary in several of them gives what one in one does."""
    if backend != "triton":
        pytest.skip("the bound on Triton's chunks is what is lowered here")
    from bigmodel_kernels.triton import linear_cross_entropy_backward as backward

    for rows in (1, 300, 8192, 100000):
        columns = backward.pass_columns(rows, 128256, dtype)
        most = max(64 << 20, 640 * rows * dtype.itemsize)
        assert rows * columns * dtype.itemsize <= most and columns * -(-128256 // columns) < 128256 + 128 * 256
    monkeypatch.setattr(backward, "_GRADIENT_BYTES", 1)
    monkeypatch.setattr(backward, "_FEWEST_COLUMNS", 300)
    assert backward.pass_columns(55, 900, dtype) == 384
    check_case(CASE["everything"], dtype, backend)


MANY_ROWS = LinearCrossEntropyCase(
    "many_rows", (301,), 36, 1500, bias=False, label_smoothing=0.1, z_loss=1e-3, softcap=3.0, reduction="mean"
)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_many_rows(dtype, backend):
    """Several blocks of rows, and two passes over the vocabulary of unequal size."""
    if backend != "cpu":
        pytest.skip("as large as the CPU's kernels need it; Triton's passes are made smaller above")
    check_case(MANY_ROWS, dtype, backend)


def test_many_rows_by_a_weight_without_gradient(backend):
    """The hidden states' gradient does not depend on whether the weight's is formed."""
    if backend != "cpu":
        pytest.skip("as large as the CPU's kernels need it; Triton's passes are made smaller above")
    grads = []
    for wanted in (["hidden"], ["hidden", "weight"]):
        inputs = MANY_ROWS.inputs(torch.float32)
        leaves_wanted = [inputs[name].requires_grad_() for name in wanted]
        grads.append(torch.autograd.grad(MANY_ROWS.run(inputs, backend)["loss"], leaves_wanted)[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize("target", [-1, 65, 1 << 40])
def test_a_target_outside_the_vocabulary_is_nan(target, backend):
    """Where the host does not wait to look at targets: on a GPU."""
    if backend == "cpu":
        pytest.skip("the cpu backend refuses such a target: test_errors.py")
    hidden, weight = (torch.randn(n, 16, device=device_of(backend), requires_grad=True) for n in (3, 65))
    targets = torch.tensor([1, target, 2], device=hidden.device)
    loss = bmk.linear_cross_entropy(hidden, weight, targets, reduction="none", backend=backend)
    (grad,) = torch.autograd.grad(loss.sum(), hidden)
    assert loss.isnan().tolist() == grad.isnan().all(-1).tolist() == [False, True, False]
    assert grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("wanted", ["hidden", "weight", "bias"])
def test_one_gradient_alone(wanted, backend):
    case = CASE["everything"]
    inputs = case.inputs(torch.float32)
    everything = leaves(inputs)
    expected = torch.autograd.grad(case.run(everything, backend)["loss"], everything[wanted])
    alone = {name: x.detach() for name, x in inputs.items()}
    alone[wanted].requires_grad_()
    grad = torch.autograd.grad(case.run(alone, backend)["loss"], alone[wanted])
    torch.testing.assert_close(grad, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["three_dimensions", "no_bias", "everything", "one_dimension"])
def test_opcheck(name, backend):
    case = CASE[name]
    inputs = tuple(leaves(case.inputs(torch.float32)).values())
    options = {"label_smoothing": case.label_smoothing, "softcap": case.softcap or 0.0, "z_loss": case.z_loss}
    result = torch.library.opcheck(ops_of(backend).linear_cross_entropy.default, inputs, options)
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_gradcheck_in_float64(softcap, reduction, backend):
    case = LinearCrossEntropyCase(
        "small", (4,), 3, 5, label_smoothing=0.1, z_loss=0.2, softcap=softcap, reduction=reduction
    )
    inputs = case.inputs(torch.float64)
    names = ("hidden", "weight", "bias")

    def function(*tensors):
        return case.run({**inputs, **dict(zip(names, tensors, strict=True))})["loss"]

    tensors = tuple(inputs[name].requires_grad_() for name in names)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_double_backward_goes_to_the_reference(backend):
    def second(each):
        inputs = leaves(CASE["everything"].inputs(torch.float32))
        wanted = [inputs["hidden"], inputs["weight"]]
        grads = torch.autograd.grad(CASE["everything"].run(inputs, each)["loss"], wanted, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), wanted)

    for ours, theirs in zip(second(backend), second("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole(compiler, backend):
    case = CASE["everything"]
    inputs = case.inputs(torch.float32)

    def function(tensors):
        return case.run(tensors, backend)["loss"]

    results = []
    for each in (torch.compile(function, fullgraph=True, backend=compiler), function):
        tensors = leaves(inputs)
        loss = each(tensors)
        loss.backward()
        results.append([loss, *(tensors[name].grad for name in ("hidden", "weight", "bias"))])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


def test_autocast(backend):
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    target = torch.randint(0, 20, (6,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = bmk.linear_cross_entropy(hidden, weight, target, backend=backend)
        low = bmk.linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), target, backend=backend)
    assert loss.dtype == torch.float32 and torch.equal(loss, low)
    loss.backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("removed", [slice(3, 4), slice(1500, None), slice(1, None)])
def test_a_bias_may_remove_words(removed, backend):
    torch.manual_seed(0)
    hidden, weight, bias, target = torch.randn(4, 64), torch.randn(3000, 64), torch.zeros(3000), torch.zeros(4).long()
    bias[removed] = -float("inf")
    expected = torch.nn.functional.cross_entropy(torch.nn.functional.linear(hidden, weight, bias), target)
    for name in (backend, "reference"):
        torch.testing.assert_close(bmk.linear_cross_entropy(hidden, weight, target, bias, backend=name), expected)
