"""attention_weights: every case on every backend and CPU target, and agreement with attention itself."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_check import DTYPES, EXAMPLES, RANDOM_DTYPES, check_case, check_repeats, dtype_name, leaves, ops_of
from test_attention import any_case

import bigmodel_kernels as bmk
from bigmodel_kernels.testing import ATTENTION_WEIGHTS_CASES, AttentionWeightsCase

CASE = {case.name: case for case in ATTENTION_WEIGHTS_CASES}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", ATTENTION_WEIGHTS_CASES, ids=lambda case: case.name)
def test_case(case, dtype, backend):
    check_case(case, dtype, backend)


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=any_case(), average=st.booleans(), dtype=st.sampled_from(RANDOM_DTYPES))
def test_random_case(backend, case, average, dtype):
    check_case(AttentionWeightsCase(case, average), dtype, backend)


@pytest.mark.parametrize("name", ["everything", "everything_averaged", "causal"])
def test_repeats_bitwise(name, backend):
    check_repeats(CASE[name], torch.float32, backend)


@pytest.mark.parametrize("average", [False, True])
def test_weights_reproduce_attention(average, backend):
    """weights @ value is attention's output, and each row sums to 1."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 40, 16) for _ in range(3))
    output, lse = bmk.attention(query, key, value, causal=True, return_lse=True, backend=backend)
    weights = bmk.attention_weights(query, key, lse, causal=True, average_heads=average, backend=backend)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    if not average:
        torch.testing.assert_close(weights @ value, output)
        averaged = bmk.attention_weights(query, key, lse, causal=True, average_heads=True, backend=backend)
        torch.testing.assert_close(averaged, weights.mean(1))


def test_gradient_through_attention_s_lse(backend):
    """The weights are a softmax again once the lse is differentiated too."""

    def gradient(each):
        torch.manual_seed(0)
        query, key = (torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(2))
        _, lse = bmk.attention(query, key, key, return_lse=True, backend=each)
        weights = bmk.attention_weights(query, key, lse, backend=each)
        return torch.autograd.grad(weights.square().sum(), (query, key)), query, key

    ours, query, key = gradient(backend)
    softmax = torch.softmax(query @ key.transpose(-1, -2) * 8**-0.5, -1)
    for grad, expected in zip(ours, torch.autograd.grad(softmax.square().sum(), (query, key)), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("average", [False, True])
def test_opcheck(average, backend):
    case = replace(CASE["everything"], attention=replace(CASE["everything"].attention, layout="contiguous"))
    inputs = leaves(case.inputs(torch.float32))
    names = ("query", "key", "lse", "mask", "alibi_slopes", "dropout_seed")
    options = {"causal": "bottom_right", "dropout_p": 0.2, "average_heads": average}
    result = torch.library.opcheck(
        ops_of(backend).attention_weights.default, tuple(inputs[name] for name in names), options
    )
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("average", [False, True])
def test_gradcheck_in_float64(average):
    small = {"batch": 1, "heads": 2, "kv_heads": 1, "q_len": 3, "kv_len": 4, "head_dim": 3}
    case = AttentionWeightsCase(replace(CASE["everything"].attention, mask=None, **small), average)
    inputs = case.inputs(torch.float64)
    names = ["query", "key", "lse"]

    def function(*tensors):
        return case.run({**inputs, **dict(zip(names, tensors, strict=True))})["weights"]

    tensors = tuple(inputs[name].detach().double().contiguous().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_double_backward_goes_to_the_reference(backend):
    def second(each):
        case = CASE["mask_float"]
        inputs = leaves(case.inputs(torch.float32))
        wanted = [x for x in inputs.values() if x.requires_grad]
        grads = torch.autograd.grad(case.run(inputs, each)["weights"].sin().sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), wanted)

    for ours, theirs in zip(second(backend), second("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_compiles_whole(backend):
    def function(query, key):
        _, lse = bmk.attention(query, key, key, return_lse=True, backend=backend)
        return bmk.attention_weights(query, key, lse, average_heads=True, backend=backend)

    query, key = (torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(2))
    compiled = torch.compile(function, fullgraph=True)
    ours = torch.autograd.grad(compiled(query, key).square().sum(), (query, key))
    eager = torch.autograd.grad(function(query, key).square().sum(), (query, key))
    for grad, expected in zip(ours, eager, strict=True):
        torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("dims", [2, 3, 5])
@pytest.mark.parametrize("average", [False, True])
def test_other_dimensions(dims, average, backend):
    shape = (2, 3, 4, 5, 8)[-dims:]
    query, key = torch.randn(shape), torch.randn(*shape[:-2], 7, 8)
    _, lse = bmk.attention(query, key, key, return_lse=True, backend=backend)
    weights = bmk.attention_weights(query, key, lse, average_heads=average, backend=backend)
    expected = torch.softmax(query @ key.transpose(-1, -2) * 8**-0.5, -1)
    if average and dims > 2:
        expected = expected.mean(-3)
    torch.testing.assert_close(weights, expected)
