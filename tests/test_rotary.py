"""rotary: every case on every CPU target, in place and not, and what torch asks of an op."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_check import DTYPES, EXAMPLES, RANDOM_DTYPES, check_case, check_repeats, dtype_name, leaves

import bigmodel_kernels as bmk
from bigmodel_kernels.testing import ROTARY_CASES, RotaryCase
from bigmodel_kernels.testing.layouts import LAYOUTS

CASE = {case.name: case for case in ROTARY_CASES}
OP = torch.ops.bigmodel.rotary


def arguments(inputs):
    return tuple(inputs.get(name) for name in ("query", "key", "cos", "sin", "positions"))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", ROTARY_CASES, ids=lambda case: case.name)
def test_case(case, dtype, backend):
    check_case(case, dtype, backend)


@st.composite
def any_case(draw):
    head_dim = draw(st.integers(2, 150))
    return RotaryCase(
        "random",
        batch=draw(st.integers(0, 3)),
        heads=draw(st.integers(1, 4)),
        kv_heads=draw(st.sampled_from([None, 1, 2])),
        length=draw(st.integers(0, 40)),
        head_dim=head_dim,
        rotary_dim=draw(st.integers(1, head_dim // 2)) * 2,
        interleaved=draw(st.booleans()),
        inverse=draw(st.booleans()),
        positions=draw(st.sampled_from([None, "shared", "each", "tokens"])),
        float32_tables=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        table_layout=draw(st.sampled_from(LAYOUTS)),
    )


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=any_case(), dtype=st.sampled_from(RANDOM_DTYPES))
def test_random_case(backend, case, dtype):
    check_case(case, dtype, backend)


@pytest.mark.parametrize("name", ["partial", "partial_interleaved"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_repeats_bitwise(name, dtype, backend):
    check_repeats(CASE[name], dtype, backend)


def angles(positions, pairs, theta=10000.0):
    frequencies = theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    return positions.double()[..., None] * frequencies


@pytest.mark.parametrize("interleaved", [False, True])
def test_turns_complex_numbers(interleaved, backend):
    """The definition in RoFormer: features are pairs of complex numbers, multiplied by e^(i angle)."""
    x = torch.randn(2, 3, 11, 16)
    turn = angles(torch.arange(11), 8)
    pairs = x.double().unflatten(-1, (8, 2)) if interleaved else x.double().unflatten(-1, (2, 8)).mT
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(turn), turn))
    expected = (turned if interleaved else turned.mT).flatten(-2)
    ours, none = bmk.rotary(x, None, turn.cos().float(), turn.sin().float(), interleaved=interleaved, backend=backend)
    assert none is None
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


def test_agrees_with_hugging_face(backend):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    query, key = torch.randn(2, 4, 9, 16), torch.randn(2, 2, 9, 16)
    turn = angles(torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 0, 0, 1, 2, 3, 4, 5, 6]]), 8).float()
    both = torch.cat([turn, turn], dim=-1)
    expected = apply_rotary_pos_emb(query, key, both.cos(), both.sin())
    ours = bmk.rotary(query, key, turn.cos(), turn.sin(), backend=backend)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("interleaved", [False, True])
def test_inverse_undoes(interleaved, backend):
    case = CASE["partial_interleaved" if interleaved else "partial"]
    query, key, *tables = arguments(case.inputs(torch.float32))
    turn = angles(torch.arange(40), case.rotary_dim // 2)
    tables = turn.cos().float(), turn.sin().float()
    turned = bmk.rotary(query, key, *tables, interleaved=interleaved, backend=backend)
    assert not torch.equal(turned[0], query)
    back = bmk.rotary(*turned, *tables, interleaved=interleaved, inverse=True, backend=backend)
    torch.testing.assert_close(back[0], query)
    torch.testing.assert_close(back[1], key)


@pytest.mark.parametrize("case", ROTARY_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("each", ["backend", "reference"])
def test_in_place_is_the_same(case, each, backend):
    inputs = arguments(case.inputs(torch.float32))
    options = {"interleaved": case.interleaved, "inverse": case.inverse}
    chosen = backend if each == "backend" else "reference"
    expected = bmk.rotary(*inputs, **options, backend=chosen)
    versions = inputs[0]._version
    results = bmk.rotary(*inputs, **options, inplace=True, backend=chosen)
    assert results[0] is inputs[0] and results[1] is inputs[1]
    assert inputs[0]._version > versions
    for ours, theirs in zip(results, expected, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@pytest.mark.parametrize("with_key", [True, False])
def test_gradient_in_place(with_key, backend):
    case = CASE["shared_positions" if with_key else "no_key"]
    grads = []
    for inplace in (False, True):
        query, key, *tables = arguments(leaves(case.inputs(torch.float32)))
        wanted = [x for x in (query, key) if x is not None]
        copies = [None if x is None else x * 2 for x in (query, key)]
        turned = bmk.rotary(*copies, *tables, inplace=inplace, backend=backend)
        loss = sum(x.sin().sum() for x in turned if x is not None)
        grads.append(torch.autograd.grad(loss, wanted))
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_in_place_under_a_saved_tensor_is_an_error(backend):
    query, _, cos, sin, _ = arguments(CASE["no_key"].inputs(torch.float32))
    weight = torch.randn_like(query).requires_grad_()
    product = query * weight
    bmk.rotary(query, None, cos, sin, inplace=True, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_in_place_under_inference_mode(backend):
    """Written once, though tensors of this mode have no version to count up."""
    with torch.inference_mode():
        query, key, *tables = arguments(CASE["plain"].inputs(torch.float32))
        expected = bmk.rotary(query, key, *tables)
        bmk.rotary(query, key, *tables, inplace=True)
        assert torch.equal(query, expected[0]) and torch.equal(key, expected[1])


@pytest.mark.parametrize("wanted", ["query", "key"])
def test_one_gradient_alone(wanted, backend):
    case = CASE["positions_of_each"]
    inputs = case.inputs(torch.float32)
    everything = leaves(inputs)
    loss = sum(x.sin().sum() for x in case.run(everything, backend).values())
    expected = torch.autograd.grad(loss, everything[wanted])
    alone = {name: x.detach().requires_grad_(name == wanted) for name, x in inputs.items()}
    loss = sum(x.sin().sum() for x in case.run(alone, backend).values())
    torch.testing.assert_close(torch.autograd.grad(loss, alone[wanted]), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["partial", "no_key_interleaved", "positions_of_each", "tokens", "heads_inside"])
def test_opcheck(name, backend):
    inputs = arguments(leaves(CASE[name].inputs(torch.float32)))
    result = torch.library.opcheck(OP.default, inputs, {"interleaved": CASE[name].interleaved})
    assert set(result.values()) == {"SUCCESS"}
    inputs = arguments(CASE[name].inputs(torch.float32))
    result = torch.library.opcheck(torch.ops.bigmodel.rotary_.default, inputs, {"interleaved": CASE[name].interleaved})
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", ["plain", "partial_interleaved", "shared_positions", "tokens_interleaved", "no_key"])
def test_gradcheck_in_float64(name, backend):
    case = CASE[name]
    inputs = RotaryCase(**{**case.__dict__, "length": 3, "heads": 1, "kv_heads": case.kv_heads and 1}).inputs(
        torch.float64
    )
    names = [each for each in ("query", "key") if inputs[each] is not None]

    def function(*tensors):
        return tuple(case.run({**inputs, **dict(zip(names, tensors, strict=True))}).values())

    tensors = tuple(inputs[each].requires_grad_() for each in names)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_double_backward(backend):
    def second(each):
        inputs = leaves(CASE["partial"].inputs(torch.float32))
        wanted = [inputs["query"], inputs["key"]]
        loss = sum(x.sin().sum() for x in CASE["partial"].run(inputs, each).values())
        grads = torch.autograd.grad(loss, wanted, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), wanted)

    for ours, theirs in zip(second(backend), second("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_whole(inplace, compiler, backend):
    inputs = CASE["shared_positions"].inputs(torch.float32)

    def function(tensors):
        query, key, *tables = arguments(tensors)
        turned = bmk.rotary(query * 2, key * 2, *tables, inplace=inplace, backend=backend)
        return turned[0] * 3, turned[1]

    results = []
    for each in (torch.compile(function, fullgraph=True, backend=compiler), function):
        tensors = leaves(inputs)
        outputs = each(tensors)
        sum(x.square().sum() for x in outputs).backward()
        results.append([*outputs, tensors["query"].grad, tensors["key"].grad])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


def test_in_place_compiles_without_gradients(backend):
    query, key, *tables = arguments(CASE["plain"].inputs(torch.float32))
    expected = bmk.rotary(query, key, *tables, backend=backend)
    compiled = torch.compile(bmk.rotary, fullgraph=True, backend="aot_eager")
    compiled(query, key, *tables, inplace=True, backend=backend)
    assert torch.equal(query, expected[0]) and torch.equal(key, expected[1])


def test_autocast_leaves_the_dtype_alone(backend):
    query, key, *tables = arguments(CASE["plain"].inputs(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        assert bmk.rotary(query, key, *tables, backend=backend)[0].dtype == torch.float32


def test_views_are_turned_in_place_under_autograd(backend):
    torch.manual_seed(0)
    angles = torch.randn(5, 8)
    x, weight = torch.randn(2, 5, 12), torch.randn(32, 12, requires_grad=True)
    results = []
    for inplace in (False, True):
        query = torch.nn.functional.linear(x, weight).unflatten(-1, (2, 16)).transpose(1, 2)
        turned, _ = bmk.rotary(query, None, angles.cos(), angles.sin(), inplace=inplace)
        results.append((turned, *torch.autograd.grad(turned.square().sum() + turned[..., 0].sum(), weight)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_leaf_is_not_written_to(backend):
    query = torch.ones(1, 1, 2, 4, requires_grad=True)
    with pytest.raises(ValueError, match=r"^\[rotary\] query is a leaf"):
        bmk.rotary(query, None, torch.zeros(2, 2), torch.zeros(2, 2), inplace=True)
    assert query.eq(1).all()


def test_positions_of_any_strides(backend):
    query, angles = torch.randn(2, 1, 8, 4), torch.randn(8, 2)
    positions = torch.arange(8).flip(0).expand(2, 8)
    turned = [bmk.rotary(query, None, angles.cos(), angles.sin(), p)[0] for p in (positions, positions.contiguous())]
    assert torch.equal(*turned)


def test_tables_of_inference_mode_serve_training(backend):
    rotary = bmk.nn.RotaryEmbedding(8)
    query = torch.randn(1, 1, 4, 8)
    with torch.inference_mode():
        rotary(query, None)
    rotary(query.requires_grad_(), None)[0].sum().backward()
    assert query.grad is not None
