"""Calls past the dispatcher: the same results as through it, never for tensors or moments that need it."""

import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import bigmodel_kernels as bmk
import bigmodel_kernels.functional
from bigmodel_kernels.ops import direct

pytestmark = pytest.mark.skipif(direct.OPS is None, reason="this torch lacks what converts tensors for direct calls")

NO_OPS = (
    *("add_norm_without_statistics", "attention_with_weights"),
    *("encoder_layer", "self_attention", "small_feed_forward", "small_linear"),
    *("plain_members", "shortcut", "takes", "unwatched", "weight_fingerprint"),
)
DISPATCHED = torch.ops.bigmodel
NAMES = [name for name in dir(direct.OPS) if not name.startswith("_") and name not in NO_OPS]


def schema(name):
    return getattr(DISPATCHED, name).default._schema


def test_every_op_can_be_called_directly():
    names = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("bigmodel::")
    }
    assert set(NAMES) == names


@pytest.mark.parametrize("name", NAMES)
def test_takes_the_schemas_keywords(name):
    """A call with every keyword of the schema is refused only for its tensors, one with another keyword at once."""
    arguments = schema(name).arguments
    positional = [None] * sum(not argument.kwarg_only for argument in arguments)
    keywords = {argument.name: argument.default_value for argument in arguments if argument.kwarg_only}
    function = getattr(direct.OPS, name)
    with pytest.raises(TypeError, match="expected a plain tensor"):
        function(*positional[:-1], torch.nn.Parameter, **keywords)
    with pytest.raises(TypeError, match="expected"):
        function(*positional, **keywords, other=1)
    with pytest.raises(TypeError, match="expected all"):
        function(*positional[1:], **keywords)


def options(name, **given):
    return {a.name: a.default_value for a in schema(name).arguments if a.kwarg_only} | given


def test_results_are_the_dispatchers():
    q, k, v = (torch.randn(2, 4, 7, 8) for _ in range(3))
    given = options("attention", causal="bottom_right", window_left=3, window_right=1, softcap=2.0, dropout_p=0.25)
    tensors = (q, k, v, torch.randn(7, 7)[None, None], torch.rand(4), torch.randn(4), torch.tensor(5))
    for ours, theirs in zip(
        direct.OPS.attention(*tensors, **given), DISPATCHED.attention(*tensors, **given), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.fixture
def direct_calls(monkeypatch):
    """Counts the calls that went past the dispatcher."""
    calls = []

    class Counting:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(_C_DIRECT, name)

    _C_DIRECT = direct.OPS
    monkeypatch.setattr(direct, "OPS", Counting())
    return calls


def test_plain_calls_are_direct(direct_calls):
    x = torch.randn(3, 4, requires_grad=True)
    bmk.add_norm(x, None, None)
    assert direct_calls == ["add_norm"]


class Subclass(torch.Tensor):
    pass


def negated(x):
    """The same values, of which memory holds the negated ones."""
    return torch._neg_view(-x)


X = torch.randn(3, 4)
UNUSUAL = {
    "subclass": (X.as_subclass(Subclass), X),
    "negated": (negated(X), X),
    "zero tensor": (torch._efficientzerotensor((3, 4)), torch.zeros(3, 4)),
    "conjugate's imaginary part": (torch.complex(X, -X).conj().imag, X),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_tensors_are_left_to_the_dispatcher(name):
    x, plain = UNUSUAL[name]
    weight = torch.randn(5, 4)
    assert torch.equal(bmk.linear(x, weight), bmk.linear(plain, weight))


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_gradients_are_left_to_the_dispatcher(name):
    grad, plain = UNUSUAL[name]
    grads = []
    for each in (grad, plain):
        x = torch.arange(6.0).reshape(3, 2).requires_grad_()
        (got,) = torch.autograd.grad(bmk.linear(x, torch.ones(4, 2)), x, each)
        grads.append(got)
    assert torch.equal(*grads)


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def test_dispatch_modes_see_the_ops():
    x = torch.randn(3, 4, requires_grad=True)
    with Recorder() as recorder:
        bmk.linear(x, torch.randn(5, 4)).sum().backward()
    assert {"bigmodel::linear", "bigmodel::linear_backward"} <= set(recorder.seen)


def test_the_profiler_sees_the_ops():
    x = torch.randn(3, 4, requires_grad=True)
    with torch.profiler.profile() as profile:
        bmk.linear(x, torch.randn(5, 4)).sum().backward()
    assert {"bigmodel::linear", "bigmodel::linear_backward"} <= {event.name for event in profile.events()}


def test_tracing_sees_the_ops():
    weight = torch.randn(5, 4)
    traced = torch.jit.trace(lambda x: bmk.linear(x, weight), torch.randn(3, 4))
    assert "bigmodel::linear" in str(traced.graph)
    x = torch.randn(3, 4)
    assert torch.equal(traced(x), bmk.linear(x, weight))


def test_forward_mode_is_refused_not_ignored():
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.randn(3, 4), torch.randn(3, 4))
        with pytest.raises(RuntimeError, match=r"^\[linear\] kernels have no forward-mode derivative"):
            bmk.linear(x, torch.randn(5, 4))
        assert forward_ad.unpack_dual(bmk.linear(x, torch.randn(5, 4), backend="reference")).tangent is not None


def test_gradients_inside_transforms_are_refused_but_the_reference_has_them():
    weight, xs = torch.randn(5, 4), torch.randn(2, 3, 4)
    for transform, x in ((torch.func.grad, xs[0]), (lambda f: torch.vmap(torch.func.grad(f)), xs)):
        with pytest.raises(RuntimeError, match=r"^\[linear\] kernels have no gradient inside torch.func's transforms"):
            transform(lambda x: bmk.linear(x, weight).sum())(x)
        computed = transform(lambda x: bmk.linear(x, weight, backend="reference").sum())(x)
        torch.testing.assert_close(computed, weight.sum(0).expand_as(x))


def test_function_modes_see_the_ops():
    class Mode(torch.overrides.TorchFunctionMode):
        seen = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Mode() as mode:
        bmk.linear(torch.randn(3, 4), torch.randn(5, 4))
    assert any("bigmodel" in name for name in mode.seen)


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_graphs_hold_the_ops(pre_dispatch):
    weight = torch.randn(5, 4)
    graph = make_fx(lambda x: bmk.linear(x, weight) * 2, pre_dispatch=pre_dispatch)(torch.randn(3, 4))
    x = torch.randn(3, 4)
    assert torch.equal(graph(x), bmk.linear(x, weight) * 2)


def ops_of(x):
    """A call of every op that saves tensors for the backward pass, as a function of x [2, 6, 8]."""
    w, v = torch.ones(8, 8) / 8, torch.ones(8)
    lse = torch.full((2, 6), 3.0)
    return {
        "attention": lambda: bmk.attention(x, x, x),
        "attention_weights": lambda: bmk.attention_weights(x[:1, None], x[:1, None], lse[:1, None]),
        "linear": lambda: bmk.linear(x, w, activation="relu"),
        "feed_forward": lambda: bmk.feed_forward(x, w, None, w, None, "gelu"),
        "add_norm": lambda: bmk.add_norm(x, x, v)[1],
    }


@pytest.mark.parametrize("op", ops_of(torch.zeros(2, 6, 8)))
def test_checkpoints_recompute(op):
    """torch's checkpoint ends the recomputation by an exception out of a hook, which must not start the call anew."""
    x = torch.randn(2, 6, 8, requires_grad=True)
    (want,) = torch.autograd.grad(ops_of(x)[op]().square().sum(), x)
    output = checkpoint(lambda x: ops_of(x)[op](), x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(output.square().sum(), x)[0], want)


def test_hooks_run_once():
    calls = []

    def pack(x):
        calls.append(x)
        raise TypeError("of the hook")

    x = torch.randn(3, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), pytest.raises(TypeError, match="of the hook"):
        bmk.linear(x, torch.randn(5, 4))
    assert len(calls) == 1


def test_batched_gradients():
    x = torch.randn(3, 4, requires_grad=True)
    output = bmk.linear(x, torch.randn(5, 4))
    grads = torch.randn(2, 3, 5)
    (batched,) = torch.autograd.grad(output, x, grads, retain_graph=True, is_grads_batched=True)
    for each, grad in zip(batched, grads, strict=True):
        assert torch.equal(each, torch.autograd.grad(output, x, grad, retain_graph=True)[0])


def test_dropout_of_a_refused_call_draws_once():
    q = torch.randn(1, 2, 9, 8)
    outputs, next_numbers = [], []
    for query in (q, q.as_subclass(Subclass)):
        torch.manual_seed(3)
        outputs.append(bmk.attention(query, q, q, dropout_p=0.5))
        next_numbers.append(torch.rand(()))
    assert torch.equal(outputs[0], outputs[1])
    assert next_numbers[0] == next_numbers[1]


def test_a_tensor_whose_memory_is_gone_is_refused():
    x = torch.randn(3, 4)
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"^\[linear\] input has elements but no memory"):
        bmk.linear(x, torch.randn(5, 4))


@pytest.mark.parametrize("ops", [DISPATCHED, direct.OPS], ids=["dispatched", "direct"])
def test_output_masks_have_a_flag_for_every_gradient(ops):
    x, w, grad = torch.randn(3, 4), torch.randn(5, 4), torch.randn(3, 5)
    with pytest.raises(RuntimeError, match=r"^\[linear_backward\] output_mask has 0 elements, expected 3"):
        ops.linear_backward(grad, x, w, None, None, activation="none", output_mask=[])


def test_no_memory_is_lost():
    import resource

    q = torch.randn(1, 1, 1, 4096)
    peak = None
    for turn in range(3000):
        bmk.attention(q, q, q)
        if turn == 500:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 8 << 10  # kB; the outputs come to 39 MB


class Planned(Exception):
    """What a user's hook raises."""


def test_a_hook_that_calls_and_raises_runs_once():
    """What a hook of the user's raises after a call of its own is no refusal of the call that it belongs to."""
    runs = []

    def pack(x):
        runs.append(1)
        with torch.no_grad():
            bmk.attention(q, q, q, return_lse=True)
            bmk.nn.MultiheadAttention(8, 2, batch_first=True).eval()(q[0], q[0], q[0])
        raise Planned

    q, x, w = torch.randn(1, 2, 3, 8), torch.randn(3, 8), torch.randn(8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), pytest.raises(Planned):
        bmk.linear(x, w)
    assert len(runs) == 1


def test_nodes_are_named_after_their_ops():
    x, w = torch.randn(3, 8), torch.randn(8, 8, requires_grad=True)
    q = torch.randn(1, 2, 3, 8, requires_grad=True)
    names = [
        type(output.grad_fn).__name__
        for output in (
            bmk.linear(x, w),
            bmk.linear(x, w, backend="cpu"),
            bmk.attention(q, q, q),
            bmk.add_norm(x, None, w[0])[1],
            bmk.add_norm(x, None, w[0], backend="cpu")[1],
        )
    ]
    assert names == ["LinearBackward", "LinearBackward", "AttentionBackward", "AddNormBackward", "AddNormBackward"]


def test_only_what_needs_a_gradient_is_kept():
    x, w, residual = torch.randn(3, 8), torch.randn(8, 8), torch.randn(3, 8, requires_grad=True)
    saved = bmk.linear(x, w, None, "gelu", residual).grad_fn.saved_tensors
    assert sum(tensor.numel() for tensor in saved if tensor is not None) == x.numel() + w.numel()


def test_other_threads_run_during_products_of_few_features():
    """Few elements may have a product with many: the interpreter's lock is given away for it."""
    x, w = torch.randn(8000, 1), torch.randn(8000, 1)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(1)
            time.sleep(0)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        while not ticks:
            time.sleep(0)
        before = len(ticks)
        bmk.linear(x, w)
        assert len(ticks) > before + 1
    finally:
        done.set()
        thread.join()


WITHOUT_DLPACK = """
import torch
del torch.Tensor.__dlpack_c_exchange_api__
import bigmodel_kernels as bmk

torch.manual_seed(0)
for rows in (1, 3, 300):
    wide, w, b = torch.randn(rows, 48), torch.randn(40, 24, requires_grad=True), torch.randn(40)
    for x in (wide[:, ::2], wide[:, :24]):
        for call in (lambda **k: bmk.linear(x, w, b, **k), lambda **k: bmk.add_norm(x, None, w[0], **k)[1]):
            torch.testing.assert_close(call(), call(backend="reference"))
            gradients = (torch.autograd.grad(call(**k).sum(), w) for k in ({}, {"backend": "reference"}))
            torch.testing.assert_close(*gradients)
            with torch.no_grad():
                torch.testing.assert_close(call(), call(backend="reference"))
try:
    bmk.linear(wide, w)
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch is without it anyway")
def test_without_dlpack_s_exchange_of_c_functions():
    run = subprocess.run([sys.executable, "-c", WITHOUT_DLPACK], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("[linear] weight")
