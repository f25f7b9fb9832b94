"""Self-attention of a few tokens in one call: the bits of the ops one by one, and only where nothing can tell."""

import pytest
import torch

import bigmodel_kernels as bmk
from bigmodel_kernels import nn as ours
from bigmodel_kernels.functional import self_attention

pytestmark = pytest.mark.skipif(
    self_attention._self_attention is None, reason="this torch lacks what direct calls need"
)


def module(**options):
    torch.manual_seed(0)
    made = ours.MultiheadAttention(24, 3, **{"batch_first": True, **options}).eval()
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return made.to(options.get("dtype", torch.float32))


def answer(module, x, residual=None):
    """What the module's one call gives, None where it is not made or gives none."""
    if not module._is_usual(x):
        return None
    into, out = (module.in_proj_weight, module.in_proj_bias), (module.out_proj.weight, module.out_proj.bias)
    return self_attention.small_self_attention(x, *into, *out, residual, module.num_heads)


def answered(module, x, residual=None):
    with torch.no_grad():
        return answer(module, x, residual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 24), (1, 1, 24), (8, 1, 24), (1, 8, 24), (5, 24)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_bits_of_the_ops_one_by_one(monkeypatch, dtype, shape, bias, with_residual):
    attention = module(dtype=dtype, bias=bias)
    x = torch.randn(shape, dtype=dtype)
    residual = torch.randn(shape, dtype=dtype) if with_residual else None
    output = answered(attention, x, residual)
    monkeypatch.setattr(self_attention, "_self_attention", None)
    with torch.no_grad():
        expected, _ = attention.attend(x, x, x, need_weights=False, residual=residual)
    assert output is not None and torch.equal(output, expected)


def test_strides():
    attention, x = module(), torch.randn(3, 2, 48)[..., ::2].transpose(0, 1)
    output = answered(attention, x)
    assert torch.equal(output, answered(attention, x.contiguous()))


def test_a_module_in_eval_mode_is_answered(monkeypatch):
    calls = []
    monkeypatch.setattr(self_attention, "_self_attention", lambda *_, **__: calls.append(1))
    attention, x = module(), torch.randn(2, 3, 24)
    with torch.no_grad():
        attention(x, x, x, need_weights=False)
    assert calls == [1]


REFUSED = {
    "many tokens": lambda: (module(), torch.randn(3, 11, 24)),
    "no tokens": lambda: (module(), torch.randn(0, 3, 24)),
    "another width": lambda: (module(), torch.randn(2, 3, 12)),
    "another dtype": lambda: (module(), torch.randn(2, 3, 24, dtype=torch.bfloat16)),
    "float64": lambda: (module(dtype=torch.float64), torch.randn(2, 3, 24, dtype=torch.float64)),
    "length first": lambda: (module(batch_first=False), torch.randn(2, 3, 24)),
    "a learned key": lambda: (module(add_bias_kv=True), torch.randn(2, 3, 24)),
    "a zero key": lambda: (module(add_zero_attn=True), torch.randn(2, 3, 24)),
    "keys of another width": lambda: (module(kdim=12), torch.randn(2, 3, 24)),
    "dropout": lambda: (module(dropout=0.5).train(), torch.randn(2, 3, 24)),
    "four dimensions": lambda: (module(), torch.randn(1, 2, 3, 24)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_left_to_the_ops(why):
    assert answered(*REFUSED[why]()) is None


def test_gradients_are_left_to_the_ops():
    attention, x = module(), torch.randn(2, 3, 24)
    assert answer(attention, x) is None
    attention.requires_grad_(False)
    assert answer(attention, x) is not None
    assert answer(attention, x.requires_grad_()) is None


def test_what_watches_is_left_to_the_ops():
    attention, x = module(), torch.randn(2, 3, 24)
    with torch.autocast("cpu"):
        assert answered(attention, x) is None
    with bmk.use_backend("reference"):
        assert answered(attention, x) is None
    with torch.profiler.profile():
        assert answered(attention, x) is None
    attention.out_proj.register_forward_hook(lambda *_: None)
    assert answered(attention, x) is None


@pytest.mark.parametrize("by_instance", [True, False])
def test_a_replaced_method_is_called(by_instance):
    class Replaced(ours.MultiheadAttention):
        pass

    attention, x, calls = Replaced(24, 3, batch_first=True).eval(), torch.randn(2, 3, 24), []

    def project(query, key, value):
        calls.append(1)
        return ours.MultiheadAttention._project(attention, query, key, value)

    if by_instance:
        attention._project = project
    else:
        Replaced._project = lambda self, *inputs: project(*inputs)
    with torch.no_grad():
        attention(x, x, x, need_weights=False)
    assert calls == [1]


def test_a_wrong_width_raises_what_torch_raises():
    x = torch.randn(2, 3, 12)
    with torch.no_grad(), pytest.raises(AssertionError, match="was expecting embedding dimension of 24, but got 12"):
        module()(x, x, x, need_weights=False)
