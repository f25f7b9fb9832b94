"""bmk.warm_up: which calls it makes, and with what, on Triton's interpreter or a device."""

import pytest
import torch

import bigmodel_kernels as bmk
from bigmodel_kernels import functional, warming

pytest.importorskip("triton", reason="the package triton, whose kernels are warmed up, is not installed")

from op_check import device_of

runs = pytest.mark.skipif(
    bool(bmk.info()["backends"]["triton"]), reason="; ".join(bmk.info()["backends"]["triton"]) or "it runs"
)
SMALL = {"batch": 1, "heads": 2, "lengths": ((4, 4),), "width": 16, "hidden": 16, "backend": "triton"}
SMALL["device"] = device_of("triton")
OPS = ("attention", "attention_weights", "attention_varlen", "linear", "feed_forward", "add_norm", "rotary")
OPS = (*OPS, "attention_decode", "linear_cross_entropy")


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that were launched."""
    from bigmodel_kernels.triton import (
        add_norm,
        add_norm_backward,
        attention_decode,
        attention_launch,
        feed_forward,
        feed_forward_backward,
        linear,
        linear_backward,
        linear_cross_entropy,
        linear_cross_entropy_backward,
        rotary,
    )

    found = []
    modules = (add_norm, add_norm_backward, feed_forward, feed_forward_backward, linear, linear_backward)
    for module in (*modules, rotary, attention_decode, linear_cross_entropy, linear_cross_entropy_backward):
        original = module.run

        def run(kernel, *arguments, _original=original, **options):
            found.append(kernel.__name__)
            _original(kernel, *arguments, **options)

        monkeypatch.setattr(module, "run", run)
    call = attention_launch.Call.run
    monkeypatch.setattr(attention_launch.Call, "run", lambda self: found.append(self.name) or call(self))
    return found


@runs
def test_all_ops_run_forward_and_backward(launched):
    assert bmk.warm_up(dtypes=torch.float16, head_dims=16, **SMALL) == 14
    assert launched.count("rotary_kernel") == 4 and "_attention_decode_kernel" in launched
    assert {"forward", "row_terms", "grad_key_value", "grad_query", "weights"} <= set(launched)
    assert launched.count("order_tiles") == 2 * 3
    assert {"cross_entropy_parts_kernel", "logits_gradient_kernel", "summed_product_kernel"} <= set(launched)
    assert {"linear_kernel", "grad_input_kernel", "grad_weight_kernel"} <= set(launched)
    assert {"gated_hidden_kernel", "gate_gradient_kernel"} <= set(launched)
    assert len([name for name in launched if "norm" in name]) >= 4


@runs
def test_every_dtype_head_size_and_length_is_called(monkeypatch):
    seen = []
    original = functional.attention

    def attention(**arguments):
        query, key = arguments["query"], arguments["key"]
        seen.append((query.dtype, *query.shape, *key.shape[1:3], arguments.get("causal", False)))
        return original(**arguments)

    monkeypatch.setattr(functional, "attention", attention)
    sizes = SMALL | {"lengths": ((4, 4), (1, 8))}
    count = bmk.warm_up(
        "attention", dtypes=(torch.float32, torch.bfloat16), head_dims=(8, 16), kv_heads=1, backward=False, **sizes
    )
    expected = {
        (dtype, 1, 2, q_len, head_dim, 1, kv_len, causal)
        for dtype in (torch.float32, torch.bfloat16)
        for head_dim in (8, 16)
        for q_len, kv_len in sizes["lengths"]
        for causal in (False, True)
    }
    assert count == len(seen) == len(expected) == 16 and set(seen) == expected


@runs
def test_without_backward_no_gradient_is_computed(launched):
    bmk.warm_up("linear", backward=False, **SMALL)
    assert set(launched) == {"linear_kernel"}


@runs
def test_options_take_the_place_of_the_defaults(launched):
    options = {"feed_forward": [{"activation": "relu", "gate": "input"}]}
    assert bmk.warm_up("feed_forward", options=options, backward=False, **SMALL) == 1
    assert launched == ["linear_kernel"] * 3, "gate, hidden, output"


@runs
def test_a_bar_shows_what_is_compiled(capsys):
    bmk.warm_up("add_norm", progress=True, **SMALL)
    shown = capsys.readouterr()
    assert "compiling add_norm bfloat16" in shown.err and not shown.out
    bmk.warm_up("add_norm", **SMALL)
    assert not capsys.readouterr().err, "where stderr is no terminal"


def test_the_cpu_has_nothing_to_compile():
    assert bmk.warm_up(device="cpu") == 0


def test_mistakes():
    with pytest.raises(ValueError, match=r"^\[warm_up\] 'attn' is not an op; expected one of attention, "):
        bmk.warm_up("attn")
    with pytest.raises(ValueError, match=r"^\[warm_up\] options has 'linear'; expected only ops that are called"):
        bmk.warm_up("attention", options={"linear": [{}]})
    with pytest.raises(ValueError, match=r"backend is 'gpu'"):
        bmk.warm_up("attention", device="cpu", backend="gpu")
    with pytest.raises(RuntimeError, match=r"^\[attention\] the cuda backend cannot run this: "):
        bmk.warm_up("attention", device="cpu", backend="cuda")


def test_every_op_has_its_calls():
    assert set(warming._OPTIONS) == set(OPS) == set(bmk.backends.OPS)
