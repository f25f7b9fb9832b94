"""attention_decode: every case on every CPU target against the float64 truth, and what torch asks of an op that writes
to its inputs."""

import math
from dataclasses import replace

import pytest
import torch
from decode_check import check_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_check import DTYPES, EXAMPLES, dtype_name

import bigmodel_kernels as bmk
from bigmodel_kernels.testing import ATTENTION_DECODE_CASES, FORWARD, AttentionDecodeCase, assert_as_exact
from bigmodel_kernels.testing.decode_cases import CACHES
from bigmodel_kernels.testing.layouts import LAYOUTS

CASE = {case.name: case for case in ATTENTION_DECODE_CASES}
CACHE_DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]
OPTIONS = {"scale": None, "window_left": -1, "softcap": 0.0}
NAMES = ("query", "key_cache", "value_cache", "cache_lengths", "block_table", "new_key", "new_value", "key_scales")
NAMES = (*NAMES, "value_scales", "sinks")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", ATTENTION_DECODE_CASES, ids=lambda case: case.name)
def test_case(case, dtype, backend):
    check_case(case, dtype, backend)


@st.composite
def any_case(draw):
    """A random call: any sizes and options at once."""
    kv_heads = draw(st.integers(1, 3))
    return AttentionDecodeCase(
        "random",
        lengths=tuple(draw(st.lists(st.one_of(st.integers(0, 70), st.integers(0, 900)), min_size=1, max_size=4))),
        heads=kv_heads * draw(st.integers(1, 6)),
        kv_heads=kv_heads,
        q_len=draw(st.integers(1, 6)),
        head_dim=draw(st.integers(1, 96)),
        value_dim=draw(st.integers(1, 96)),
        cache_dtype=draw(st.sampled_from([None, *CACHE_DTYPES])),
        page_size=draw(st.one_of(st.none(), st.integers(1, 40))),
        new=draw(st.booleans()),
        window=draw(st.one_of(st.none(), st.integers(0, 100))),
        softcap=draw(st.sampled_from([None, 3.0])),
        scale=draw(st.sampled_from([None, 0.3])),
        sinks=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        index_dtype=draw(st.sampled_from([torch.int32, torch.int64])),
    )


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=any_case(), dtype=st.sampled_from(DTYPES))
def test_random_case(backend, case, dtype):
    check_case(case, dtype, backend)


def test_generates_what_attention_computes_at_once(backend):
    """Prompt and tokens through a paged cache, a few at a time, against one call of attention on the whole sequence."""
    torch.manual_seed(0)
    batch, heads, kv_heads, length, dim, page_size = 2, 6, 2, 23, 24, 4
    query, key, value = (torch.randn(batch, n, length, dim) for n in (heads, kv_heads, kv_heads))
    table = torch.randperm(2 * 6).reshape(batch, 6)
    caches = [torch.full((12, kv_heads, page_size, dim), torch.nan) for _ in range(2)]
    lengths = torch.zeros(batch, dtype=torch.int64)
    outputs = []
    for first, end in ((0, 9), (9, 10), (10, 11), (11, 15), (15, 23)):
        new = slice(first, end)
        rows = {"new_key": key[:, :, new], "new_value": value[:, :, new]}
        output = bmk.attention_decode(query[:, :, new], *caches, lengths, block_table=table, **rows, backend=backend)
        outputs.append(output)
        lengths += end - first
    whole = bmk.attention(query, key, value, causal="bottom_right", backend="reference")
    torch.testing.assert_close(torch.cat(outputs, 2), whole)


@pytest.mark.parametrize("name", ["everything_bf16", "long_int8", "one_long_many_short", "window_long"])
def test_results_do_not_depend_on_threads(name, backend):
    inputs, threads = CASE[name].inputs(torch.float32), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            results.append(CASE[name].run(inputs, backend))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert torch.equal(results[0]["output"], other["output"]) and torch.equal(results[0]["lse"], other["lse"])


def test_extreme_scores(backend):
    """Scores far beyond the range of exp, of every sign and order: the largest wins, nothing overflows."""
    key = torch.tensor([-100.0, 99.0, -100.0, 100.0, 0.0] * 30)[:, None].expand(1, 1, 150, 4).contiguous()
    value = torch.arange(150.0)[:, None].expand(1, 1, 150, 2).contiguous()
    query, lengths = torch.full((1, 1, 1, 4), 100.0), torch.tensor([4])
    output, lse = bmk.attention_decode(query, key, value, lengths, scale=1.0, return_lse=True, backend=backend)
    assert torch.equal(output, torch.full_like(output, 3.0)) and torch.equal(lse, torch.full_like(lse, 40000.0))
    lengths = torch.tensor([150])
    output, lse = bmk.attention_decode(query, key, value, lengths, scale=-1.0, return_lse=True, backend=backend)
    expected_rows = torch.arange(150).reshape(30, 5)[:, [0, 2]].float().mean()
    torch.testing.assert_close(output, expected_rows.expand_as(output))


def arguments(case: AttentionDecodeCase, dtype: torch.dtype = torch.float32) -> list:
    inputs = case.inputs(dtype)
    return [inputs.get(name) for name in NAMES]


@pytest.mark.parametrize("name", ["plain", "pages_int8", "no_new", "heads_inside"])
def test_opcheck(name, backend):
    tensors = [None if x is None else torch.nan_to_num(x) for x in arguments(CASE[name])]
    result = torch.library.opcheck(torch.ops.bigmodel.attention_decode.default, tuple(tensors), OPTIONS)
    assert set(result.values()) == {"SUCCESS"}


def test_fake_has_the_strides_of_the_kernel(backend):
    from torch._subclasses.fake_tensor import FakeTensorMode

    for layout in LAYOUTS:
        for q_len in (1, 3):
            tensors = arguments(replace(CASE["value_dim_24"], layout=layout, q_len=q_len, heads=4))
            op = torch.ops.bigmodel.attention_decode
            real = op(*tensors)
            with FakeTensorMode() as mode:
                fake = op(*(None if x is None else mode.from_tensor(x) for x in tensors))
            for ours, theirs in zip(fake, real, strict=True):
                assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype), layout


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", ["pages_int8", "cache_bf16"])
def test_compiles_whole(name, compiler, backend):
    """A step in a graph: outputs and caches as without it, twice in a row."""
    case = CASE[name]

    def step(query, key_cache, value_cache, cache_lengths, **others):
        outputs = []
        for _ in range(2):
            output = bmk.attention_decode(query, key_cache, value_cache, cache_lengths, **others, backend=backend)
            cache_lengths = cache_lengths + query.shape[2]
            query = query + output[..., :1]
            outputs.append(output)
        return outputs

    inputs = replace(case, lengths=tuple(length + 3 for length in case.lengths)).inputs(torch.float32)
    inputs["cache_lengths"] -= 3
    if "block_table" in inputs:  # pages for both steps
        inputs["block_table"] = torch.arange(inputs["block_table"].numel()).reshape(inputs["block_table"].shape)
    results = []
    for function in (torch.compile(step, fullgraph=True, backend=compiler), step):
        given = {n: torch.nan_to_num(x) if n in CACHES else x for n, x in inputs.items()}
        results.append([*function(**given), *(given[n] for n in CACHES if n in given)])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=0, atol=0)


@pytest.mark.parametrize("features", [512, 520, 1024])
def test_int8_sums_of_the_largest_terms(features, backend):
    """Every product is as large as it can be and all have one sign: the most that a sum of integers must hold."""
    query, keys = torch.ones(1, 1, 1, features, dtype=torch.bfloat16), torch.full((1, 1, 8, features), 127).char()
    lse = bmk.attention_decode(
        query, keys, keys[..., :8], torch.tensor([8]), key_scales=torch.full((1, 1, 8), 1 / 127),
        value_scales=torch.ones(1, 1, 8), scale=1 / features, return_lse=True, backend=backend,
    )[1]  # fmt: skip
    torch.testing.assert_close(lse, torch.full_like(lse, 1 + math.log(8)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("count", [4, 5, 63, 64, 65])
def test_an_infinite_value_stays_infinite(count, backend):
    """Whether it comes last after an odd number of keys or not."""
    query, keys = (torch.randn(1, 1, n, 32, dtype=torch.bfloat16) for n in (1, count))
    values = torch.randn_like(keys)
    values[0, 0, -1, 0] = math.inf
    output = bmk.attention_decode(query, keys, values, torch.tensor([count]), backend=backend)
    assert output[0, 0, 0, 0] == math.inf and output[0, 0, 0, 1:].isfinite().all()


def test_compiles_for_sizes_that_change():
    """One function for caches and for pages: what differs between the calls is then a symbol to torch.compile."""
    step = torch.compile(bmk.attention_decode, fullgraph=True, backend="aot_eager")
    for name in ("cache_bf16", "pages_int8"):
        inputs = CASE[name].inputs(torch.float32)
        given = [{n: torch.nan_to_num(x) if n in CACHES else x for n, x in inputs.items()} for _ in range(2)]
        torch.testing.assert_close(step(**given[0]), bmk.attention_decode(**given[1]), rtol=0, atol=0)


def test_direct_calls_do_the_same():
    from bigmodel_kernels.ops import direct

    if direct.OPS is None:
        pytest.skip("this torch lacks what converts tensors for direct calls")
    for name in ("everything_bf16", "pages_int8"):
        results = []
        for ops in (direct.OPS, torch.ops.bigmodel):
            tensors = arguments(CASE[name])
            results.append([*ops.attention_decode(*tensors, **OPTIONS), *(x for x in tensors if x is not None)])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("named", [None, "cpu", "reference"])
def test_autograd_sees_the_writes(named):
    """A graph that saved the cache before the call must not go on with what it holds after it."""
    inputs = {name: torch.nan_to_num(x) for name, x in CASE["plain"].inputs(torch.float32).items()}
    weight = torch.ones((), requires_grad=True)
    product = weight * inputs["key_cache"]
    with torch.no_grad():
        bmk.attention_decode(**inputs, backend=named)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    with torch.inference_mode():
        given = {name: x.clone() for name, x in inputs.items()}
        assert bmk.attention_decode(**given, backend=named).shape == inputs["query"].shape


def test_gradients_are_refused(backend):
    inputs = CASE["plain"].inputs(torch.float32)
    for name in ("query", "key_cache", "new_value"):
        given = {**inputs, name: inputs[name].clone().requires_grad_()}
        for named in (None, backend, "reference"):
            with pytest.raises(ValueError, match=r"^\[attention_decode\] an input requires a gradient"):
                bmk.attention_decode(**given, backend=named)
    with torch.no_grad():
        bmk.attention_decode(**{**inputs, "query": inputs["query"].clone().requires_grad_()}, backend=backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_autocast(dtype, backend):
    """The query and the new rows are cast, the caches are what they are."""
    case = CASE["plain"]
    with torch.autocast("cpu", dtype):
        results = case.run(case.inputs(torch.float32), backend)
        same = case.run(case.inputs(torch.float32), "reference")
    assert results["output"].dtype == same["output"].dtype == dtype
    torch.testing.assert_close(results["key_cache"], same["key_cache"], rtol=0, atol=0, equal_nan=True)


def test_copy_on_write_caches_are_copied():
    inputs = CASE["plain"].inputs(torch.float32)
    before = inputs["key_cache"].clone()
    inputs["key_cache"] = torch._lazy_clone(inputs["key_cache"])
    original = CASE["plain"].inputs(torch.float32)["key_cache"]
    bmk.attention_decode(**inputs)
    assert not torch.equal(torch.nan_to_num(inputs["key_cache"]), torch.nan_to_num(before))
    torch.testing.assert_close(original, before, rtol=0, atol=0, equal_nan=True)


def both_caches(change):
    return {"key_cache": change, "value_cache": change}


def three_heads(x):
    return torch.cat([x, x], 1)[:, :3].contiguous()


def one_memory(x):
    return x[:1].expand_as(x)


def rows_overlap(x):
    return x.flatten().as_strided(x.shape, (1184, 592, 16, 1))


# What is changed of a good call, and how the error goes on after the op's name.
BAD = [
    (TypeError, {"query": lambda x: [1.0]}, "query is a list; expected a tensor"),
    (TypeError, {"cache_lengths": lambda x: None}, "cache_lengths is missing"),
    (ValueError, {"query": lambda x: x[:, :, 0]}, "query has shape [2, 2, 32]"),
    (ValueError, {"key_cache": lambda x: x[..., :31]}, "key_cache has shape [2, 2, 37, 31]; expected [2, kv_heads, "),
    (ValueError, {"key_cache": lambda x: x[:1]}, "key_cache has shape [1, 2, 37, 32]"),
    (ValueError, both_caches(three_heads), "key_cache has 3 heads, query 2"),
    (ValueError, {"value_cache": lambda x: x[:, :, 1:]}, "value_cache has shape [2, 2, 36, 32]"),
    (ValueError, both_caches(torch.Tensor.short), "key_cache has dtype torch.int16"),
    (ValueError, {"value_cache": torch.Tensor.half}, "value_cache has dtype torch.float16, key_cache torch.float32"),
    (
        ValueError,
        {"key_cache": lambda x: torch.cat([x, x], -1)[..., ::2]},
        "key_cache has a last dimension that is not contiguous",
    ),
    (ValueError, {"cache_lengths": torch.Tensor.float}, "cache_lengths has dtype torch.float32; expected int32 or int"),
    (ValueError, {"cache_lengths": lambda x: x[:1]}, "cache_lengths has shape [1]; expected [2]"),
    (ValueError, {"new_value": lambda x: None}, "new_key and new_value: one is given without the other"),
    (
        ValueError,
        {"new_key": lambda x: torch.cat([x, x], 2)},
        "new_key has shape [2, 2, 2, 32]; expected [2, 2, 1,",
    ),
    (ValueError, {"new_value": torch.Tensor.half}, "new_value has dtype torch.float16, query torch.float32"),
    (ValueError, {"key_scales": lambda x: torch.ones(2, 2, 37)}, "key_scales is given, but the cache is not int8"),
    (ValueError, both_caches(torch.Tensor.char), "key_scales is missing; expected those of int8"),
    (ValueError, both_caches(one_memory), "key_cache has shape [2, 2, 37, 32] and strides [0, 1184, 32, 1], whose"),
    (ValueError, {"value_cache": rows_overlap}, "value_cache has shape [2, 2, 37, 32] and strides [1184, 592, 16, 1]"),
    (ValueError, {"block_table": lambda x: torch.tensor([0, 1])}, "block_table has shape [2]"),
    (ValueError, {"sinks": lambda x: torch.zeros(3)}, "sinks has shape [3]"),
    (ValueError, {"window": lambda x: -2}, "window is (-2, None)"),
    (ValueError, {"softcap": lambda x: -1.0}, "softcap is -1.0; expected a finite number of at least 0"),
    (ValueError, {"scale": lambda x: float("nan")}, "scale is nan; expected a finite number"),
    (RuntimeError, {"cache_lengths": lambda x: torch.tensor([5, 37])}, "cache_lengths[1] is 37 and the call adds 1"),
    (RuntimeError, {"cache_lengths": lambda x: torch.tensor([-1, 4])}, "cache_lengths[0] is -1"),
    (RuntimeError, {"block_table": lambda x: torch.tensor([[1], [2]])}, "block_table[1, 0] is 2"),
    (RuntimeError, {"block_table": lambda x: torch.tensor([[-1], [0]])}, "block_table[0, 0] is -1"),
]


@pytest.mark.parametrize("kind, changes, text", BAD, ids=[text for _, _, text in BAD])
@pytest.mark.parametrize("named", [None, "cpu", "reference"])
def test_error(kind, changes, text, named):
    """Nothing is written either. The reference finds places that do not exist too, as a ValueError."""
    given = {"window": None, "softcap": None, "scale": None, **CASE["plain"].inputs(torch.float32)}
    given |= {name: torch.nan_to_num(given[name]) for name in CACHES if name in given}
    given |= {name: change(given.get(name)) for name, change in changes.items()}
    before = {name: given[name].clone() for name in CACHES if name in given}
    with pytest.raises(ValueError if kind is RuntimeError and named == "reference" else kind) as caught:
        bmk.attention_decode(**given, backend=named)
    assert str(caught.value).startswith(f"[attention_decode] {text}")
    for name, cache_before in before.items():
        assert torch.equal(given[name], cache_before)


DIRECT = {
    "key_cache shape": {"key_cache": lambda x: x[..., :31]},
    "key_cache dtype": {"key_cache": lambda x: x.double(), "value_cache": lambda x: x.double()},
    "value_cache dtype": {"value_cache": lambda x: x.half()},
    "rows apart": {"key_cache": lambda x: torch.cat([x, x], -1)[..., ::2]},
    "lengths dtype": {"cache_lengths": lambda x: x.short()},
    "too long": {"cache_lengths": lambda x: x + 40},
    "page": {"block_table": lambda x: torch.tensor([[0], [9]])},
    "one new": {"new_key": lambda x: None},
    "new shape": {"new_key": lambda x: x[:, :1]},
    "scales": {"key_scales": lambda x: torch.ones(2, 2, 37)},
    "sinks": {"sinks": lambda x: torch.ones(3)},
    "one memory": both_caches(one_memory),
    "rows overlap": both_caches(rows_overlap),
}


@pytest.mark.parametrize("name", DIRECT)
def test_the_op_itself_checks(name):
    """A call of torch.ops.bigmodel past functional is refused as cleanly."""
    inputs = CASE["plain"].inputs(torch.float32)
    inputs |= {each: change(inputs.get(each)) for each, change in DIRECT[name].items()}
    with pytest.raises(RuntimeError, match=r"^\[attention_decode\] "):
        torch.ops.bigmodel.attention_decode(*(inputs.get(each) for each in NAMES))
    for options in ({"scale": float("inf")}, {"window_left": -2}, {"softcap": -1.0}):
        with pytest.raises(RuntimeError, match=rf"^\[attention_decode\] {next(iter(options))} is "):
            torch.ops.bigmodel.attention_decode(*arguments(CASE["plain"]), **options)


@pytest.mark.parametrize("name", ["no_new", "evicted_int8"])
def test_caches_that_are_only_read_may_be_expanded(name, backend):
    """A prefix of all sequences is in memory once. What is appended to has to be in memory for each."""
    inputs = CASE[name].inputs(torch.float32)
    new = {each: inputs.pop(each, None) for each in ("new_key", "new_value")}
    inputs["cache_lengths"] = torch.full_like(inputs["cache_lengths"], 4)
    inputs.pop("block_table", None)
    batch, caches = (
        len(inputs["query"]),
        {each: torch.nan_to_num(inputs[each][:1]) for each in CACHES if each in inputs},
    )
    expanded = {each: x.expand(batch, *x.shape[1:]) for each, x in caches.items()}
    actual = bmk.attention_decode(**inputs | expanded, backend=backend)
    copied = {each: x.contiguous() for each, x in expanded.items()}
    assert torch.equal(actual, bmk.attention_decode(**inputs | copied, backend=backend))
    if None in new.values():
        return
    for each in copied:
        for named in (None, backend, "reference"):
            with pytest.raises(ValueError, match=rf"^\[attention_decode\] {each} has shape .* share memory"):
                bmk.attention_decode(**inputs | new | copied | {each: expanded[each]}, backend=named)


def int8_call(lengths, value_scale, query=None):
    """(ours, reference, truth) of bf16 queries over an int8 cache of 64 keys; value_scale is the first sequence's."""
    torch.manual_seed(0)
    batch = len(lengths)
    caches = [torch.randint(-127, 128, (batch, 1, 64, 16), dtype=torch.int8) for _ in range(2)]
    query = torch.randn(batch, 4, 1, 16).bfloat16() if query is None else query
    scales = {name: torch.full((batch, 1, 64), 0.01) for name in ("key_scales", "value_scales")}
    scales["value_scales"][0] = value_scale
    given = (*caches, torch.tensor(lengths, dtype=torch.int32))
    wide = {name: x.double() for name, x in scales.items()}
    return (
        bmk.attention_decode(query, *given, **scales, backend="cpu"),
        bmk.attention_decode(query, *given, **scales, backend="reference"),
        bmk.attention_decode(query.double(), *given, **wide, backend="reference"),
    )


def test_int8_weights_of_one_sequence_do_not_reach_the_next():
    ours, reference, truth = (x[1] for x in int8_call([64, 25], float("inf")))
    assert_as_exact("output", ours, reference, truth, FORWARD, torch.bfloat16)


def test_int8_values_with_negative_scales():
    ours, reference, truth = int8_call([9], -0.01)
    assert truth.abs().max() > 0.1
    assert_as_exact("output", ours, reference, truth, FORWARD, torch.bfloat16)


def test_nan_is_not_lost_over_int8():
    query = torch.randn(1, 4, 1, 16).bfloat16()
    query[0, 0, 0, 0] = float("nan")
    ours, reference, _ = int8_call([9], 0.01, query)
    assert torch.equal(ours.isnan(), reference.isnan()) and ours.isnan().any()
