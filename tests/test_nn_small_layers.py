"""Layers of a few tokens in one call: the bits of the ops one by one, and only where nothing can tell."""

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

import bigmodel_kernels as bmk
from bigmodel_kernels import nn as ours
from bigmodel_kernels.functional import small_layers
from bigmodel_kernels.nn.attention import JOINT_PARAMETERS
from bigmodel_kernels.nn.fusion import LINEAR, is_plain
from bigmodel_kernels.nn.members import plain_members

pytestmark = pytest.mark.skipif(small_layers._self_attention is None, reason="this torch lacks what direct calls need")


def module(**options):
    torch.manual_seed(0)
    made = ours.MultiheadAttention(24, 3, **{"batch_first": True, **options}).eval()
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return made.to(options.get("dtype", torch.float32))


def answer(module, x, residual=None):
    """What the module's one call gives, None where it is not made or gives none."""
    if not (small_layers.is_small(x, module.embed_dim) and module._is_usual(x)):
        return None
    learned = plain_members(module, JOINT_PARAMETERS)
    return learned and small_layers.self_attention(x, *learned, residual, module.num_heads)


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
    monkeypatch.setattr(small_layers, "_self_attention", None)
    with torch.no_grad():
        expected, _ = attention.attend(x, x, x, need_weights=False, residual=residual)
    assert output is not None and torch.equal(output, expected)


def test_strides():
    attention, x = module(), torch.randn(3, 2, 48)[..., ::2].transpose(0, 1)
    output = answered(attention, x)
    assert torch.equal(output, answered(attention, x.contiguous()))


def test_a_module_in_eval_mode_is_answered(monkeypatch):
    calls = []
    monkeypatch.setattr(small_layers, "_self_attention", lambda *_, **__: calls.append(1))
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


TOUCHED = {
    "a hook": lambda part: part.register_forward_hook(lambda *_: None),
    "a hook before": lambda part: part.register_forward_pre_hook(lambda *_: None),
    "a hook of gradients": lambda part: part.register_full_backward_hook(lambda *_: None),
    "a hook before gradients": lambda part: part.register_full_backward_pre_hook(lambda *_: None),
    "a hook of all modules": lambda part: register_module_forward_hook(lambda *_: None),
    "a forward of its own": lambda part: setattr(part, "forward", lambda x: x),
    "a parametrization": lambda part: parametrize.register_parametrization(part, "weight", torch.nn.Identity()),
    "another class": lambda part: setattr(part, "__class__", type("Other", (type(part),), {})),
}


@pytest.mark.parametrize("how", TOUCHED)
def test_a_submodule_that_is_not_plain_is_left_to_the_ops(how):
    attention, x = module(), torch.randn(2, 3, 24)
    assert answered(attention, x) is not None
    handle = TOUCHED[how](attention.out_proj)
    try:
        assert not is_plain(attention.out_proj, *LINEAR)  # one question, answered in Python and in C
        assert plain_members(attention, JOINT_PARAMETERS) is None
        assert answered(attention, x) is None
    finally:
        if how == "a hook of all modules":
            handle.remove()


def test_members_that_are_not_there():
    attention = module()
    assert plain_members(attention, ((None, (), ("no_such_member",)),)) is None
    assert plain_members(attention, (("no_such_submodule", (), ()),)) is None
    assert plain_members(attention, ((None, (), ("num_heads",)),)) == [3]
    with pytest.raises(TypeError, match=r"\[plain_members\] expected a part"):
        plain_members(attention, (("out_proj", None, ()),))


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


def wide(layer):
    """Gives a layer of 24 features linear layers whose weights lie by columns, too large to lay out in each call."""
    layer.linear1, layer.linear2 = torch.nn.Linear(24, 800), torch.nn.Linear(800, 24)
    for linear in (layer.linear1, layer.linear2):
        linear.weight = torch.nn.Parameter(linear.weight.detach().t().contiguous().t())


class TestEncoderLayer:
    @staticmethod
    def layer(kind=ours.TransformerEncoderLayer, **options):
        torch.manual_seed(0)
        made = kind(24, 3, 40, **{"dropout": 0.1, "batch_first": True, **options}).eval()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return made

    @staticmethod
    def in_one_call(layer, x):
        with torch.no_grad():
            return layer._in_one_call(x) if small_layers.is_small(x, x.shape[-1]) else None

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("shape", [(2, 3, 24), (8, 1, 24), (5, 24)])
    @pytest.mark.parametrize("norm_first", [True, False])
    @pytest.mark.parametrize("options", [{}, {"bias": False}, {"activation": "gelu", "layer_norm_eps": 0.1}], ids=str)
    def test_bits_of_the_ops_one_by_one(self, monkeypatch, dtype, shape, norm_first, options):
        layer = self.layer(norm_first=norm_first, dtype=dtype, **options)
        x = torch.randn(shape, dtype=dtype)
        output = self.in_one_call(layer, x)
        monkeypatch.setattr(small_layers, "_self_attention", None)
        with torch.no_grad():
            expected = layer(x)
        assert output is not None and torch.equal(output, expected)

    def test_a_layer_in_eval_mode_is_answered(self, monkeypatch):
        calls = []
        monkeypatch.setattr(small_layers, "_encoder_layer", lambda *_, **__: calls.append(1))
        with torch.no_grad():
            self.layer()(torch.randn(2, 3, 24))
        assert calls == [1]

    def test_a_mask_is_left_to_the_ops(self, monkeypatch):
        monkeypatch.setattr(small_layers, "_encoder_layer", lambda *_, **__: pytest.fail("answered"))
        layer, x, mask = self.layer(), torch.randn(2, 3, 24), torch.ones(3, 3, dtype=torch.bool).triu(1)
        with torch.no_grad():
            layer(x, src_mask=mask)
            layer(x, src_mask=mask, is_causal=True)
            layer(x, src_key_padding_mask=torch.tensor([[False, False, True]] * 2))

    @pytest.mark.parametrize(
        "change",
        {
            "dropout": lambda layer: layer.train(),
            "another norm": lambda layer: setattr(layer, "norm2", torch.nn.RMSNorm(24)),
            "a norm of another width": lambda layer: setattr(
                layer, "norm1", torch.nn.LayerNorm(12, elementwise_affine=False)
            ),
            "torch's attention": lambda layer: setattr(
                layer, "self_attn", torch.nn.MultiheadAttention(24, 3, batch_first=True)
            ),
            "an activation of one's own": lambda layer: setattr(layer, "activation", torch.tanh),
            "a hook of a linear layer": lambda layer: layer.linear1.register_forward_hook(lambda *_: None),
            "a hook of a dropout": lambda layer: layer.dropout2.register_forward_hook(lambda *_: None),
            "a hook of the attention": lambda layer: layer.self_attn.register_forward_hook(lambda *_: None),
            "a hook of its projection": lambda layer: layer.self_attn.out_proj.register_forward_hook(lambda *_: None),
            "a replaced method": lambda layer: setattr(layer, "_ff_block", lambda x: x),
            "a weight of another dtype": lambda layer: layer.linear2.half(),
            "a large weight that is worth packing": lambda layer: wide(layer),
        }.items(),
        ids=lambda change: change[0],
    )
    def test_left_to_the_ops(self, change):
        layer = self.layer()
        x = torch.randn(2, 3, 24)
        assert self.in_one_call(layer, x) is not None
        change[1](layer)
        assert self.in_one_call(layer, x) is None

    def test_many_tokens_and_gradients_are_left_to_the_ops(self):
        layer = self.layer()
        assert self.in_one_call(layer, torch.randn(3, 11, 24)) is None
        assert layer._in_one_call(torch.randn(2, 3, 24)) is None
        assert layer(torch.randn(2, 3, 24)).requires_grad

    def test_a_subclass_is_called(self):
        class Doubled(ours.TransformerEncoderLayer):
            def _ff_block(self, x):
                return 2 * super()._ff_block(x)

        x = torch.randn(2, 3, 24)
        assert self.in_one_call(self.layer(Doubled), x) is None
        assert self.in_one_call(self.layer(type("Same", (ours.TransformerEncoderLayer,), {})), x) is not None

    def test_a_replaced_parameter_is_read(self):
        layer, x = self.layer(), torch.randn(2, 3, 24)
        doubled = {name: 2 * p.detach() for name, p in layer.named_parameters()}
        with torch.no_grad():
            swapped = torch.func.functional_call(layer, doubled, (x,))
            layer.load_state_dict(doubled)
            assert torch.equal(swapped, layer(x))
