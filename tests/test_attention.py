"""attention: every case on every backend and CPU target against the float64 truth, and what torch asks of an op."""

import math
import subprocess
import sys
import textwrap
from dataclasses import replace
from fractions import Fraction

import numpy
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_check import (
    DTYPES,
    EXAMPLES,
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
from bigmodel_kernels.reference.philox import dropout_keep, philox4x32_10
from bigmodel_kernels.testing import ATTENTION_CASES, AttentionCase
from bigmodel_kernels.testing.layouts import LAYOUTS

CASE = {case.name: case for case in ATTENTION_CASES}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case.name)
def test_case(case, dtype, backend):
    check_case(case, dtype, backend)


@st.composite
def any_case(draw):
    """A random call: any sizes, options and layouts at once."""
    kv_heads = draw(st.integers(1, 3))
    length = st.one_of(st.integers(0, 9), st.integers(10, 140))
    side = st.one_of(st.none(), st.integers(0, 60))
    mask = draw(st.sampled_from([None, "bool", "bool_rows", "float", "float_query", "float_inf"]))
    return AttentionCase(
        "random",
        batch=draw(st.integers(0, 3)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        q_len=draw(length),
        # One key's gradient is a difference of equal sums, all rounding: the case "one_key" has it.
        kv_len=draw(length.filter(lambda size: size != 1)),
        head_dim=draw(st.integers(1, 96)),
        value_dim=draw(st.integers(1, 96)),
        mask=mask,
        # A float mask that is the same for all keys changes no weight: its gradient is, but for the lse's part, a sum
        # of terms that cancel, all rounding.
        mask_dims="".join(dim for dim in "bhqk" if draw(st.booleans()) or (dim == "k" and "float" in str(mask))),
        causal=draw(st.sampled_from([False, "top_left", "bottom_right"])),
        window=draw(st.one_of(st.none(), st.tuples(side, side))),
        scale=draw(st.sampled_from([None, 0.3])),
        softcap=draw(st.sampled_from([None, 3.0])),
        alibi=draw(st.sampled_from([None, "heads", "batch"])),
        sinks=draw(st.booleans()),
        dropout_p=draw(st.sampled_from([0.0, 0.0, 0.25])),
        layout=draw(st.sampled_from(LAYOUTS)),
    )


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=any_case(), dtype=st.sampled_from(RANDOM_DTYPES))
def test_random_case(backend, case, dtype):
    check_case(case, dtype, backend)


@pytest.mark.parametrize("name", ["everything", "causal_large", "long_keys", "multi_query"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_repeats_bitwise(name, dtype, backend):
    check_repeats(CASE[name], dtype, backend)


def test_gradients_of_sum(backend):
    """sum().backward() hands over a gradient of stride 0."""
    case = CASE["grouped"]
    inputs = leaves(case.inputs(torch.float32))
    wanted = [inputs[name] for name in ("query", "key", "value")]
    ours = torch.autograd.grad(case.run(inputs, backend)["output"].sum(), wanted)
    theirs = torch.autograd.grad(case.run(inputs, "reference")["output"].sum(), wanted)
    for name, grad, expected in zip(inputs, ours, theirs, strict=False):
        torch.testing.assert_close(grad, expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("wanted", ["query", "key", "value", "mask", "sinks"])
def test_one_gradient_alone(wanted, backend):
    """Asking for one gradient gives the bits that asking for all gives."""
    case = replace(CASE["everything"], dropout_p=0.0)
    inputs = case.inputs(torch.float32)
    _, everything = run_with_gradients(case, inputs, torch.float32, backend)
    inputs = {name: x.detach().requires_grad_(name == wanted) for name, x in inputs.items()}
    outputs = case.run(inputs, backend)
    given = grad_outputs(outputs, torch.float32)
    (grad,) = torch.autograd.grad(list(outputs.values()), [inputs[wanted]], list(given.values()))
    torch.testing.assert_close(grad, everything[wanted], rtol=0, atol=0)


def test_output_or_lse_gradient_alone(backend):
    case = CASE["sinks_causal"]
    for name in ("output", "lse"):
        grads = []
        for each in (backend, "reference"):
            inputs = leaves(case.inputs(torch.float32))
            wanted = [inputs["query"], inputs["key"]]
            grads.append(torch.autograd.grad(case.run(inputs, each)[name].sin().sum(), wanted))
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_dropout_mask_is_the_reference_s(dtype, backend):
    """With equal scores and the identity for values, the output shows the mask itself."""
    batch, heads, q_len, kv_len, p = 2, 3, 9, 70, 0.35
    seed = torch.tensor(0x1234_5678_9ABC_DEF0)
    query = torch.zeros(batch, heads, q_len, 8, dtype=dtype)
    key = torch.zeros(batch, heads, kv_len, 8, dtype=dtype)
    value = torch.eye(kv_len, dtype=dtype).expand(batch, heads, kv_len, kv_len)
    output = bmk.attention(query, key, value, dropout_p=p, dropout_seed=seed, backend=backend)
    assert torch.equal(output != 0, dropout_keep(batch, heads, q_len, kv_len, p, seed))


def test_dropout_follows_manual_seed(backend):
    query = torch.randn(1, 2, 20, 8)

    def draw(seed):
        torch.manual_seed(seed)
        return [bmk.attention(query, query, query, dropout_p=0.5, backend=backend) for _ in range(2)]

    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])


def test_philox_known_answers():
    """The published known-answer vectors of Philox4x32-10 (Random123)."""
    vectors = [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for counter, key, words in vectors:
        found = philox4x32_10(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
        assert " ".join(f"{int(word):08x}" for word in found) == words


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_extreme_scores(dtype, backend):
    """Scores far beyond the range of exp: the largest wins, nothing overflows."""
    query = torch.full((1, 1, 3, 4), 100.0, dtype=dtype)
    key = torch.tensor([-100.0, 100.0, 99.0, -100.0], dtype=dtype)[:, None].expand(1, 1, 4, 4)
    value = torch.arange(4.0, dtype=dtype)[:, None].expand(1, 1, 4, 2)
    output, lse = bmk.attention(query, key, value, scale=1.0, return_lse=True, backend=backend)
    assert torch.equal(output, torch.ones_like(output))
    assert torch.equal(lse, torch.full_like(lse, 40000.0))


def test_masked_values_do_not_leak(backend):
    """Huge keys and values that a query may not see change nothing. (A NaN or infinity in a hidden value may: 0 times
    it is NaN where it shares a tile with values that are seen, as in torch.)"""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 40, 16) for _ in range(3))
    clean = bmk.attention(query, key, value, causal=True, backend=backend)
    key[:, :, 30:], value[:, :, 35:] = 1e30, -1e30
    dirty = bmk.attention(query, key, value, causal=True, backend=backend)
    assert torch.equal(clean[:, :, :30], dirty[:, :, :30])


@pytest.mark.parametrize("dims", [2, 3, 5])
def test_other_dimensions(dims, backend):
    torch.manual_seed(0)
    shape = (2, 3, 4, 5, 8)[-dims:]
    query, key = torch.randn(shape), torch.randn(*shape[:-2], 7, 8)
    value = torch.randn(*shape[:-2], 7, 6)
    mask = torch.randn(*shape[:-1], 7)
    output, lse = bmk.attention(query, key, value, mask=mask, return_lse=True, backend=backend)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(query, key, value, mask))
    assert lse.shape == shape[:-1]


@pytest.mark.parametrize("arguments", [{}, {"is_causal": True}, {"scale": 0.3}, {"enable_gqa": True}, {"mask": "bool"}])
def test_scaled_dot_product_attention(arguments, backend):
    torch.manual_seed(0)
    arguments = dict(arguments)
    kv_heads = 2 if arguments.get("enable_gqa") else 6
    query, key, value = torch.randn(2, 6, 9, 8), torch.randn(2, kv_heads, 11, 8), torch.randn(2, kv_heads, 11, 5)
    if arguments.pop("mask", None):
        arguments["attn_mask"] = torch.rand(9, 11) > 0.4
    with bmk.use_backend(backend):
        ours = bmk.scaled_dot_product_attention(query, key, value, **arguments)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(query, key, value, **arguments))


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 4, 5, 8), (1, 4, 7, 8), (2, 1, 7, 8)),
        ((2, 1, 5, 8), (2, 4, 7, 8), (1, 4, 7, 8)),
        ((3, 2, 4, 5, 8), (4, 7, 8), (1, 1, 7, 8)),
        ((4, 5, 8), (4, 7, 8), (4, 7, 3)),
        ((5, 8), (7, 8), (7, 3)),
    ],
)
def test_scaled_dot_product_attention_broadcasts(shapes, backend):
    torch.manual_seed(0)
    query, key, value = (torch.randn(shape) for shape in shapes)
    with bmk.use_backend(backend):
        ours = bmk.scaled_dot_product_attention(query, key, value)
    # torch's own broadcasting differs between its kernels; expanded inputs mean the same on all.
    leading = torch.broadcast_shapes(*(shape[:-2] for shape in shapes))
    theirs = F.scaled_dot_product_attention(*(x.expand(*leading, *x.shape[-2:]) for x in (query, key, value)))
    torch.testing.assert_close(ours, theirs)


def test_scaled_dot_product_attention_drops_everything(backend):
    query = torch.randn(2, 6, 9, 8, requires_grad=True)
    key, value = torch.randn(2, 6, 11, 8), torch.randn(2, 6, 11, 5, requires_grad=True)
    with bmk.use_backend(backend):
        output = bmk.scaled_dot_product_attention(query, key, value, dropout_p=1.0)
        grads = torch.autograd.grad(output.sum(), (query, value))
    assert output.shape == F.scaled_dot_product_attention(query, key, value, dropout_p=1.0).shape
    assert not any(x.any() for x in (output, *grads))


def test_scale_is_any_real_number():
    query, key, value = torch.randn(2, 6, 9, 8), torch.randn(2, 6, 11, 8), torch.randn(2, 6, 11, 5)
    for scale in (numpy.float32(0.3), numpy.float16(0.3), numpy.int64(2), Fraction(1, 3)):
        expected = bmk.attention(query, key, value, scale=float(scale))
        assert torch.equal(bmk.attention(query, key, value, scale=scale), expected)


def test_opcheck(backend):
    for case in (replace(CASE["everything"], layout="contiguous"), CASE["heads_inside"]):
        inputs = leaves(case.inputs(torch.float32))
        names = ("query", "key", "value", "mask", "alibi_slopes", "sinks", "dropout_seed")
        options = {"causal": "bottom_right", "dropout_p": case.dropout_p, "softcap": case.softcap or 0.0}
        result = torch.library.opcheck(
            ops_of(backend).attention.default, tuple(inputs.get(name) for name in names), options
        )
        assert set(result.values()) == {"SUCCESS"}


def test_fake_has_the_strides_of_the_kernel(backend):
    """Outputs and gradients of the fake lie in memory exactly as the kernel's do."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    shapes = [(2, 3, 5, 8), (1, 3, 5, 8), (2, 1, 5, 8), (2, 3, 1, 8), (2, 3, 0, 8), (0, 3, 5, 8)]
    for shape in shapes:
        for layout in LAYOUTS:
            inputs = replace(
                CASE["primes"], batch=shape[0], heads=shape[1], q_len=shape[2], head_dim=8, value_dim=4, layout=layout
            ).inputs(torch.float32)

            def forward_and_backward(query, key, value):
                output, lse = ops_of(backend).attention(query, key, value)
                grads = ops_of(backend).attention_backward(output, lse, query, key, value, output, lse)
                return [(x.shape, x.stride(), x.dtype) for x in (output, lse, *grads)]

            real = forward_and_backward(**inputs)
            with FakeTensorMode() as mode:
                fake = forward_and_backward(**{name: mode.from_tensor(x) for name, x in inputs.items()})
            assert fake == real, f"{shape} {layout}"


def test_gradcheck_in_float64():
    case = replace(CASE["everything"], batch=1, heads=2, kv_heads=1, q_len=3, kv_len=4, head_dim=3, value_dim=2)
    inputs = case.inputs(torch.float64)
    inputs["mask"] = torch.randn(1, 1, 3, 4, dtype=torch.float64)
    inputs["sinks"] = inputs["sinks"].double()
    names = ["query", "key", "value", "mask", "sinks"]

    def function(*tensors):
        return tuple(case.run({**inputs, **dict(zip(names, tensors, strict=True))}).values())

    tensors = tuple(inputs[name].detach().contiguous().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_double_backward_goes_to_the_reference(backend):
    case = replace(CASE["everything"], alibi=None, mask="float")

    def second(each):
        inputs = leaves(case.inputs(torch.float32))
        wanted = [x for x in inputs.values() if x.requires_grad]
        outputs = case.run(inputs, each)
        grads = torch.autograd.grad(sum(x.sin().sum() for x in outputs.values()), wanted, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), wanted)

    for ours, theirs in zip(second(backend), second("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_double_backward_with_tied_inputs(backend):
    """Self-attention on one tensor, and a key computed from the query: no path is counted twice."""

    def second(each):
        torch.manual_seed(0)
        x = torch.randn(1, 2, 6, 4, requires_grad=True)
        output = bmk.attention(x, x * 2, x.sin(), backend=each)
        (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    torch.testing.assert_close(second(backend), second("reference"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole(compiler, backend):
    case = replace(CASE["everything"], layout="contiguous")
    inputs = case.inputs(torch.float32)
    compiled = torch.compile(
        lambda tensors: tuple(case.run(tensors, backend).values()), fullgraph=True, backend=compiler
    )
    results = []
    for function in (compiled, lambda tensors: tuple(case.run(tensors, backend).values())):
        tensors = leaves(inputs)
        output, lse = function(tensors)
        (output.sum() + lse.where(lse.isfinite(), 0).sum()).backward()
        results.append([output, *(x.grad for x in tensors.values() if x.requires_grad)])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=0, atol=0)


def test_compiles_with_dynamic_lengths(backend):
    compiled = torch.compile(
        lambda x: bmk.attention(x, x, x, causal=True, backend=backend),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for length in (5, 9, 17):
        x = torch.randn(2, 3, length, 8)
        assert torch.equal(compiled(x), bmk.attention(x, x, x, causal=True, backend=backend))


def test_exports(backend):
    class Model(torch.nn.Module):
        def forward(self, x):
            return bmk.attention(x, x, x, causal=True, backend=backend)

    x = torch.randn(1, 2, 7, 8)
    exported = torch.export.export(Model(), (x,))
    assert torch.equal(exported.module()(x), Model()(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_autocast(dtype, backend):
    query = torch.randn(1, 2, 5, 8, requires_grad=True)
    mask = torch.zeros(5, 5)
    with torch.autocast("cpu", dtype):
        output = bmk.attention(query, query, query, mask=mask, backend=backend)
        same = bmk.attention(query, query, query, mask=mask, backend="reference")
    assert output.dtype == same.dtype == dtype
    output.sum().backward()
    assert query.grad.dtype == torch.float32


# Calls whose scores would take 256 MiB, as functions of a length; each holds little for a short one.
FRUGAL = {
    "forward and backward": """
q, k, v = (torch.randn(1, 1, length, 64, requires_grad=True) for _ in range(3))
out = bmk.attention(q, k, v, mask=torch.rand(1, 1, 1, length) > 0.1, causal=True, dropout_p=0.1, backend="cpu")
out.backward(torch.randn_like(out))
""",
    "gradient of an additive bias": """
q = torch.randn(1, 1, length, 64)
bias = torch.randn(1, 1, 1, length, requires_grad=True)
out = bmk.attention(q, q, q, mask=bias, backend="cpu")
out.backward(torch.randn_like(out))
""",
    "mean weights of many heads": """
q, k = (torch.randn(1, 64, length // 8, 8, requires_grad=True) for _ in range(2))
lse = bmk.attention(q, k, k, return_lse=True)[1].detach()
weights = bmk.attention_weights(q, k, lse, average_heads=True, backend="cpu")
weights.backward(torch.randn_like(weights))
""",
}


@pytest.mark.parametrize("name", FRUGAL)
def test_no_quadratic_memory(name):
    """At 8192 x 8192, or 64 heads of 1024 x 1024, memory stays far from the 256 MiB that the scores take."""
    script = f"""
import resource, torch, bigmodel_kernels as bmk
def run(length):
{textwrap.indent(FRUGAL[name], "    ")}
run(256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(8192)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown = float(done.stdout)
    assert grown < 64, f"memory grew by {grown:.0f} MiB"


def test_fully_masked_rows(backend):
    query, key, value = (torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(3))
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[2] = False
    output, lse = bmk.attention(query, key, value, mask=mask, return_lse=True, backend=backend)
    assert (output[:, :, 2] == 0).all() and (lse[:, :, 2] == -math.inf).all()
    (output.sum() + lse[:, :, [0, 1, 3, 4, 5]].sum()).backward()
    assert (query.grad[:, :, 2] == 0).all()
    assert all(torch.isfinite(x.grad).all() for x in (query, key, value))


def test_sink_alone(backend):
    """A row that sees no key but has a sink: output 0, lse the sink."""
    query = torch.randn(1, 2, 3, 8)
    sinks = torch.tensor([0.25, -1.5])
    output, lse = bmk.attention(
        query, query, query, mask=torch.zeros(3, 3, dtype=torch.bool), sinks=sinks, return_lse=True, backend=backend
    )
    assert (output == 0).all()
    torch.testing.assert_close(lse, sinks[None, :, None].expand(1, 2, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_rows_far_apart(dtype, backend):
    """Keys and values whose rows would crowd in few sets of the caches are packed for many queries: the same bits."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, length, 64, dtype=dtype) for length in (200, 150, 150))

    def spread(x):
        wide = torch.zeros(1, 2, 150, 16384, dtype=dtype)  # two heads of 150 rows of 32 KiB or more
        wide[..., :64] = x
        return wide[..., :64]

    output = bmk.attention(query, key, value, backend=backend)
    assert torch.equal(bmk.attention(query, spread(key), spread(value), backend=backend), output)
