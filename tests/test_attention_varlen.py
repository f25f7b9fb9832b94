"""attention_varlen: every case on every backend and CPU target against the float64 truth, and what torch asks of an
op."""

from dataclasses import replace

import pytest
import torch
from bigmodel_bench.memory import peak_extra_bytes
from conftest import CPU_DISPATCHES, DISPATCHES, SKIPPED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_check import (
    DTYPES,
    EXAMPLES,
    INTERPRETED,
    RANDOM_DTYPES,
    check_case,
    check_repeats,
    dtype_name,
    grad_outputs,
    leaves,
    ops_of,
    run_with_gradients,
)

import bigmodel_kernels as bmk
from bigmodel_kernels.testing import ATTENTION_VARLEN_CASES, AttentionCase, AttentionVarlenCase
from bigmodel_kernels.testing.layouts import LAYOUTS

CASE = {case.name: case for case in ATTENTION_VARLEN_CASES}
# Triton's interpreter takes seconds for long sequences; it runs the other cases in fp32, and these in every type.
LONG = ("long", "one_long_many_short", "everything")
IN_EVERY_TYPE = ("plain", "grouped", "head_dim_129", "mask_float_query", "dropout", "few_queries_grouped")

# All options at once, of fewer tokens where they are interpreted.
EVERYTHING = replace(CASE["everything"], lengths=((9, 12), 1, (33, 20))) if INTERPRETED else CASE["everything"]

on_cpus = pytest.mark.parametrize("backend", CPU_DISPATCHES, ids=lambda dispatch: dispatch[1], indirect=True)


def calls() -> list:
    """Every case in every dtype on every backend, but for what takes an interpreter too long."""
    found = []
    for dispatch in (*DISPATCHES, *SKIPPED):
        (name, target), marks = (dispatch.values[0], dispatch.marks) if dispatch in SKIPPED else (dispatch, ())
        for case in ATTENTION_VARLEN_CASES:
            for dtype in DTYPES:
                quick = case.name in IN_EVERY_TYPE or (dtype == torch.float32 and case.name not in LONG)
                if quick or name != "triton" or not INTERPRETED:
                    words = (target or name, dtype_name(dtype), case.name)
                    found.append(pytest.param(case, dtype, (name, target), marks=marks, id="-".join(words)))
    return found


@pytest.mark.parametrize(("case", "dtype", "backend"), calls(), indirect=["backend"])
def test_case(case, dtype, backend):
    check_case(case, dtype, backend)


@st.composite
def any_case(draw):
    """A random call: any lengths, options and layouts at once."""
    kv_heads = draw(st.integers(1, 3))
    length = st.one_of(st.integers(0, 9), st.integers(10, 140))
    # One key's gradient is a difference of equal sums, all rounding: the case "ones" has it.
    pair = st.tuples(length, length.filter(lambda size: size != 1))
    side = st.one_of(st.none(), st.integers(0, 60))
    mask = draw(st.sampled_from([None, "bool", "bool_rows", "float", "float_query", "float_inf"]))
    return AttentionVarlenCase(
        "random",
        lengths=tuple(draw(st.lists(pair, max_size=5))),
        attention=AttentionCase(
            "",
            heads=kv_heads * draw(st.integers(1, 3)),
            kv_heads=kv_heads,
            head_dim=draw(st.integers(1, 96)),
            value_dim=draw(st.integers(1, 96)),
            mask=mask,
            # As in test_attention.py: without "k" the gradient of a float mask is all rounding.
            mask_dims="".join(dim for dim in "bhqk" if draw(st.booleans()) or (dim == "k" and "float" in str(mask))),
            causal=draw(st.sampled_from([False, "top_left", "bottom_right"])),
            window=draw(st.one_of(st.none(), st.tuples(side, side))),
            scale=draw(st.sampled_from([None, 0.3])),
            softcap=draw(st.sampled_from([None, 3.0])),
            alibi=draw(st.sampled_from([None, "heads", "batch"])),
            sinks=draw(st.booleans()),
            dropout_p=draw(st.sampled_from([0.0, 0.0, 0.25])),
        ),
        layout=draw(st.sampled_from(LAYOUTS)),
        index_dtype=draw(st.sampled_from([torch.int32, torch.int64])),
    )


@settings(
    max_examples=3 if INTERPRETED else EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=any_case(), dtype=st.sampled_from(RANDOM_DTYPES))
def test_random_case(backend, case, dtype):
    check_case(case, dtype, backend)


@pytest.mark.parametrize("name", ["few_queries_grouped", *(() if INTERPRETED else ("everything_dropout", *LONG))])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_repeats_bitwise(name, dtype, backend):
    check_repeats(CASE[name], dtype, backend)


@on_cpus
@pytest.mark.parametrize("name", LONG)
def test_results_do_not_depend_on_threads(name, backend):
    inputs, threads = CASE[name].inputs(torch.float32), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run_with_gradients(CASE[name], inputs, torch.float32, backend))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for before, after in zip(results[0], other, strict=True):
            for each in before:
                assert torch.equal(before[each], after[each]), each


def test_each_sequence_is_attention_to_the_bit(backend):
    """Its neighbours change nothing, forward or backward."""
    lengths = ((70, 150), (3, 3), (33, 100) if INTERPRETED else (200, 1040))
    case = AttentionVarlenCase("", lengths, AttentionCase("", heads=4, kv_heads=2, sinks=True))
    inputs = leaves(case.inputs(torch.float32))
    packed = [inputs[name] for name in ("query", "key", "value")]
    options = {"causal": "bottom_right", "sinks": inputs["sinks"], "return_lse": True, "backend": backend}
    together = bmk.attention_varlen(*packed, inputs["cu_seqlens_q"], inputs["cu_seqlens_k"], **options)
    grad_output = torch.randn_like(together[0])
    grads = torch.autograd.grad(together[0], packed, grad_output)
    first = first_key = 0
    for q_len, kv_len in lengths:
        rows, keys = slice(first, first + q_len), slice(first_key, first_key + kv_len)
        first, first_key = rows.stop, keys.stop
        mine = [x.detach()[each].transpose(0, 1)[None] for x, each in zip(packed, (rows, keys, keys), strict=True)]
        mine = [x.requires_grad_() for x in mine]
        output, lse = bmk.attention(*mine, **options)
        assert torch.equal(output[0].transpose(0, 1), together[0][rows]) and torch.equal(lse[0], together[1][:, rows])
        alone = torch.autograd.grad(output, mine, grad_output[rows].transpose(0, 1)[None])
        for grad, whole, each in zip(alone, grads, (rows, keys, keys), strict=True):
            assert torch.equal(grad[0].transpose(0, 1), whole[each])


def test_agrees_with_padded_attention(backend):
    """What a user had before: padding, and a mask that removes it."""
    torch.manual_seed(0)
    lengths, heads, dim = [9, 4, 17], 3, 16
    padded = [torch.randn(3, heads, 17, dim, requires_grad=True) for _ in range(3)]
    real = torch.arange(17) < torch.tensor(lengths)[:, None]
    packed = [x.transpose(1, 2)[real] for x in padded]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    ours = bmk.attention_varlen(*packed, starts, starts, causal=True, backend=backend)
    theirs = bmk.attention(*padded, mask=real[:, None, None], causal=True, backend="reference").transpose(1, 2)[real]
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    for mine, expected in zip(
        torch.autograd.grad(ours, padded, grad), torch.autograd.grad(theirs, padded, grad), strict=True
    ):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("wanted", ["query", "key", "value", "mask", "sinks"])
def test_one_gradient_alone(wanted, backend):
    case = EVERYTHING
    inputs = case.inputs(torch.float32)
    _, everything = run_with_gradients(case, inputs, torch.float32, backend)
    alone = {name: x.detach().requires_grad_(name == wanted) for name, x in inputs.items()}
    outputs = case.run(alone, backend)
    given = grad_outputs(outputs, torch.float32)
    (grad,) = torch.autograd.grad(list(outputs.values()), [alone[wanted]], list(given.values()))
    torch.testing.assert_close(grad, everything[wanted], rtol=0, atol=0)


def test_output_or_lse_gradient_alone(backend):
    case = CASE["sinks"]
    for name in ("output", "lse"):
        grads = []
        for each in (backend, "reference"):
            inputs = leaves(case.inputs(torch.float32))
            wanted = [inputs["query"], inputs["key"]]
            grads.append(torch.autograd.grad(case.run(inputs, each)[name].sin().sum(), wanted))
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs)


@on_cpus
def test_memory_is_that_of_the_tokens(backend):
    """No padding, and no scores: one long sequence and many short ones in a few megabytes, forward and backward."""
    lengths = [2048, *[16] * 64]
    tokens, heads, dim = sum(lengths), 2, 32
    inputs = [torch.randn(tokens, heads, dim, requires_grad=True) for _ in range(3)]
    starts = torch.tensor([0, *lengths]).cumsum(0)

    def run(each):
        output = bmk.attention_varlen(*inputs, starts, starts, backend=each)
        return torch.autograd.grad(output.sum(), inputs)

    scores_bytes = heads * 2048 * 2048 * 4
    assert peak_extra_bytes(lambda: run("reference")) > scores_bytes
    assert peak_extra_bytes(lambda: run(backend)) < scores_bytes / 2


@pytest.mark.parametrize(
    "case", [EVERYTHING, *(CASE[name] for name in ("plain", "heads_inside", "no_keys"))], ids=lambda case: case.name
)
def test_opcheck(case, backend):
    inputs = leaves(case.inputs(torch.float32))
    names = ("query", "key", "value", "cu_seqlens_q", "cu_seqlens_k", "mask", "alibi_slopes", "sinks", "dropout_seed")
    attention = case.attention
    options = {"causal": attention.causal or "none", "softcap": attention.softcap or 0.0}
    op = ops_of(backend).attention_varlen.default
    result = torch.library.opcheck(op, tuple(inputs.get(each) for each in names), options)
    assert set(result.values()) == {"SUCCESS"}


@on_cpus
def test_gradcheck_in_float64(backend):
    small = AttentionCase("", heads=2, kv_heads=1, head_dim=3, value_dim=2, mask="float", mask_dims="hk", sinks=True)
    case = AttentionVarlenCase("", (2, (3, 4)), replace(small, causal="bottom_right", softcap=2.0))
    inputs = case.inputs(torch.float64)
    names = ("query", "key", "value", "mask", "sinks")

    def function(*tensors):
        return tuple(case.run({**inputs, **dict(zip(names, tensors, strict=True))}).values())

    tensors = tuple(inputs[name].double().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_double_backward_goes_to_the_reference(backend):
    def second(each):
        inputs = leaves(EVERYTHING.inputs(torch.float32))
        wanted = [inputs[name] for name in ("query", "key", "value", "mask", "sinks")]
        grads = torch.autograd.grad(EVERYTHING.run(inputs, each)["output"].sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), wanted)

    for ours, theirs in zip(second(backend), second("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole(compiler, backend):
    case = EVERYTHING
    inputs = case.inputs(torch.float32)

    def function(tensors):
        return case.run(tensors, backend)["output"]

    results = []
    for each in (torch.compile(function, fullgraph=True, backend=compiler), function):
        tensors = leaves(inputs)
        output = each(tensors)
        output.sin().sum().backward()
        results.append([output, *(tensors[name].grad for name in ("query", "key", "value", "mask", "sinks"))])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


def test_what_cannot_be_read_is_refused(backend):
    query, starts = torch.randn(9, 2, 8), torch.tensor([0, 4, 9])
    with pytest.raises(ValueError, match=r"^\[attention_varlen\] cu_seqlens_q is nested or sparse"):
        bmk.attention_varlen(query, query, query, starts.to_sparse(), starts, backend=backend)
    meta = [x.to("meta") for x in (query, query, query, starts, starts)]
    with pytest.raises(ValueError, match=r"^\[attention_varlen\] query is on meta, and the reference needs"):
        bmk.attention_varlen(*meta, backend="reference")
    assert bmk.attention_varlen(*meta).shape == query.shape


def test_autocast(backend):
    query, starts = torch.randn(9, 2, 8, requires_grad=True), torch.tensor([0, 4, 9])
    with torch.autocast("cpu", torch.bfloat16):
        output = bmk.attention_varlen(query, query, query, starts, starts, backend=backend)
    low = query.detach().bfloat16()
    assert torch.equal(output, bmk.attention_varlen(low, low, low, starts, starts, backend=backend))
    output.sum().backward()
    assert query.grad.dtype == torch.float32
