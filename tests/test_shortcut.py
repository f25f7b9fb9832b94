"""Plain calls of attention are answered without the documented function's code, and all others are not."""

import pytest
import torch

import bigmodel_kernels as bmk
import bigmodel_kernels.functional
from bigmodel_kernels.ops import direct

pytestmark = pytest.mark.skipif(direct.OPS is None, reason="this torch lacks what converts tensors for direct calls")


@pytest.fixture
def declined(monkeypatch):
    """The calls that the documented function's own code has seen."""
    from bigmodel_kernels.functional import calls

    seen = []
    monkeypatch.setattr(calls.direct, "takes", lambda x, takes=direct.takes: seen.append(x) or takes(x))
    return seen


@pytest.fixture
def tensors():
    return [torch.randn(1, 2, 5, 8) for _ in range(3)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"causal": "bottom_right", "scale": 0.5},
        {"mask": None, "dropout_p": 0.0, "softcap": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_answers_plain_calls(declined, tensors, options, by_name, grad):
    inputs = [x.clone().requires_grad_(grad) for x in tensors]
    given = dict(zip(("query", "key", "value"), inputs, strict=True)) if by_name else {}
    output = bmk.attention(*(() if by_name else inputs), **given, **options)
    assert not declined
    theirs = [x.clone().requires_grad_(grad) for x in tensors]
    expected = bmk.attention(*theirs, **options, backend="cpu")
    assert torch.equal(output, expected)
    if grad:
        grads = [torch.autograd.grad(o.square().sum(), x) for o, x in ((output, inputs), (expected, theirs))]
        for ours, reference in zip(*grads, strict=True):
            torch.testing.assert_close(ours, reference, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"window": (2, 0)},
        {"softcap": 3.0},
        {"return_lse": True},
        {"scale": 2},
        {"mask": torch.ones(5, 5, dtype=torch.bool)},
        {"dropout_p": 0.5},
        {"sinks": torch.zeros(2)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_leaves_other_calls(tensors, options):
    """To the code that knows them: the answer is the dispatcher's, and not the plain call's."""
    outputs = []
    for backend in ({}, {"backend": "cpu"}):
        torch.manual_seed(0)
        output = bmk.attention(*tensors, **backend | options)
        outputs.append(output[0] if options.get("return_lse") else output)
    assert torch.equal(*outputs)
    same_as_plain = torch.equal(outputs[0], bmk.attention(*tensors))
    assert same_as_plain == ("return_lse" in options or "mask" in options)


@pytest.mark.parametrize("rows, width", [(1, 64), (5, 192), (3, 1), (200, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_residual", [True, False])
def test_answers_plain_calls_of_few_rows(declined, dtype, rows, width, with_residual):
    x = torch.randn(2, rows, width, dtype=dtype)[:, :4]
    w1, b1 = torch.randn(16, width, dtype=dtype), torch.randn(16, dtype=dtype)
    w2, residual = torch.randn(9, 16, dtype=dtype), torch.randn(*x.shape[:-1], 9, dtype=dtype)
    given = {"residual": residual} if with_residual else {}
    calls = [
        lambda **options: bmk.linear(x, w1, b1, "gelu", **options),
        lambda **options: bmk.linear(x, w1, activation="silu", **options),
        lambda **options: bmk.linear(bmk.linear(x, w1, backend="cpu"), w2, bias=None, **given, **options),
        lambda **options: bmk.feed_forward(x, w1, b1, w2, None, **given, **options),
        lambda **options: bmk.feed_forward(x, w1, None, w2=w2, b2=None, activation="gelu_tanh", **given, **options),
    ]
    for call in calls:
        expected = call(backend="cpu")
        declined.clear()
        assert torch.equal(call(), expected)
        assert not declined


def test_rows_are_copied_without_the_interpreters_lock(declined):
    """Of a call large enough to give it away: making a tensor of the argument takes it again."""
    x, weight = torch.randn(4, 300, 64)[:, :256], torch.randn(16, 64)
    output = bmk.linear(x, weight)
    assert not declined
    assert torch.equal(output, bmk.linear(x, weight, backend="cpu"))


def test_linear_leaves_what_a_packed_weight_or_a_gradient_wants(declined):
    x, weight = torch.randn(33, 128), torch.randn(128, 128)
    few = x[:32]
    for plain, call in (
        (True, lambda: bmk.linear(few, weight)),
        (True, lambda: bmk.linear(x, weight[:127])),
        (False, lambda: bmk.linear(x, weight)),
        (False, lambda: bmk.linear(few, weight.t())),
        (True, lambda: bmk.linear(few, weight.clone().requires_grad_())),
        (True, lambda: bmk.linear(x, weight.clone().requires_grad_())),
        (True, lambda: bmk.linear(few, weight, x[0].clone().requires_grad_())),
        (False, lambda: bmk.linear(x.clone().requires_grad_(), weight)),
        (True, lambda: bmk.add_norm(few.clone().requires_grad_(), None, x[0])[1]),
        (True, lambda: bmk.add_norm(few.clone().requires_grad_(), few, x[0])[1]),
        (False, lambda: bmk.feed_forward(x, weight, None, weight, None)),
        (False, lambda: bmk.feed_forward(few, weight, None, weight, None, gate="hidden", w_gate=weight)),
    ):
        declined.clear()
        output = call()
        assert bool(declined) == (not plain)
        assert output.isfinite().all()


def test_errors_of_small_linear_are_the_documented_ones():
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    with pytest.raises(ValueError, match=r"^\[linear\] bias has shape"):
        bmk.linear(x, weight, torch.randn(5))
    with pytest.raises(ValueError, match=r"^\[linear\] activation is 'tanh'"):
        bmk.linear(x, weight, activation="tanh")
    with pytest.raises(TypeError, match="weight"):
        bmk.linear(x)
    with pytest.raises(ValueError, match=r"^\[feed_forward\] w1"):
        bmk.feed_forward(x, weight.t(), None, weight, None)


def test_a_forced_backend_is_honoured(tensors):
    with bmk.use_backend("triton"), pytest.raises(RuntimeError, match="triton"):
        bmk.attention(*tensors)


@pytest.mark.parametrize("causal", [1, "left", 0])
def test_a_wrong_value_is_refused_as_ever(tensors, causal):
    with pytest.raises(ValueError, match=rf"^\[attention\] causal is {causal!r}"):
        bmk.attention(*tensors, causal=causal)


def test_errors_are_the_documented_function_s(tensors):
    query, key, value = tensors
    with pytest.raises(ValueError, match=r"^\[attention\]"):
        bmk.attention(query, key[..., :3], value)
    with pytest.raises(ValueError, match=r"^\[attention\]"):
        bmk.attention(query.requires_grad_(), key.half(), value)
    with pytest.raises(TypeError, match="missing"):
        bmk.attention(query, key)
    with pytest.raises(TypeError, match="unexpected"):
        bmk.attention(query, key, value, colour=1)


def test_other_ranks_and_zero_sizes(tensors):
    query, key, value = (x[0] for x in tensors)
    assert torch.equal(bmk.attention(query, key, value), bmk.attention(*tensors)[0])
    assert bmk.attention(*(x[:0] for x in tensors)).shape == (0, 2, 5, 8)


def test_a_gradient_twice(tensors):
    inputs = [x.double().requires_grad_() for x in tensors]
    assert torch.autograd.gradgradcheck(bmk.attention, inputs)
    singles = [x.requires_grad_() for x in tensors]
    output = bmk.attention(*singles)
    (grad,) = torch.autograd.grad(output.square().sum(), singles[0], create_graph=True)
    assert torch.autograd.grad(grad.sum(), singles[1])[0].abs().sum() > 0


def test_a_failing_hook_is_not_a_refusal(tensors):
    calls = []

    def pack(x):
        calls.append(x)
        raise OSError("full")

    inputs = [x.requires_grad_() for x in tensors]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), pytest.raises(OSError, match="full"):
        bmk.attention(*inputs)
    assert len(calls) == 1


def test_an_interrupt_is_not_a_refusal(tensors, monkeypatch):
    """It comes once, while the op runs, and must not be lost in a second try."""
    from bigmodel_kernels.ops import attention as module

    class Interrupted:
        def attention(*args, **options):
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(module.direct, "OPS", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        bmk.attention(*(x.requires_grad_() for x in tensors))
