"""bmk.nn.MultiheadAttention against torch.nn.MultiheadAttention with the same state."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn_pairs import assert_same, make_pair

from bigmodel_kernels import nn as ours

MASKS = [None, "bool", "float", "bool per head", "float per head", "causal"]
PADDINGS = [None, "bool", "float"]


def make_inputs(case, embed_dim, kdim, vdim, batch, q_len, kv_len, batch_first, dtype=torch.float64):
    """query, key, value for "self", "memory" (key is value) or "separate"; batch None: unbatched."""

    def tensor(length, width):
        if batch is None:
            return torch.randn(length, width, dtype=dtype)
        return torch.randn(*((batch, length) if batch_first else (length, batch)), width, dtype=dtype)

    query = tensor(q_len, embed_dim)
    if case == "self":
        return [query, query, query]
    key = tensor(kv_len, kdim)
    return [query, key, key if case == "memory" else tensor(kv_len, vdim)]


def make_masks(attn_mask, padding, heads, batch, q_len, kv_len, dtype=torch.float64):
    """Keyword arguments for forward; every query keeps key 0, since torch gives NaN where none is left."""
    options = {}
    if attn_mask == "causal":
        options |= {"attn_mask": torch.ones(q_len, kv_len, dtype=torch.bool).triu(1), "is_causal": True}
    elif attn_mask is not None:
        shape = ((batch or 1) * heads, q_len, kv_len) if "per head" in attn_mask else (q_len, kv_len)
        removed = torch.rand(shape) < 0.4
        removed[..., 0] = False
        if "float" in attn_mask:
            options["attn_mask"] = torch.randn(shape, dtype=dtype).masked_fill(removed, float("-inf"))
        else:
            options["attn_mask"] = removed
    if padding is not None:
        shape = (kv_len,) if batch is None else (batch, kv_len)
        removed = torch.rand(shape) < 0.4
        removed[..., 0] = False
        options["key_padding_mask"] = removed
        if padding == "float":
            options["key_padding_mask"] = torch.randn(shape, dtype=dtype).masked_fill(removed, float("-inf"))
    return options


@settings(max_examples=100, deadline=None)
@given(
    case=st.sampled_from(["self", "memory", "separate"]),
    batch=st.sampled_from([None, 1, 3]),
    batch_first=st.booleans(),
    heads=st.sampled_from([1, 2, 3]),
    head_dim=st.sampled_from([1, 4, 5]),
    lengths=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    other_dims=st.booleans(),
    bias=st.booleans(),
    add_bias_kv=st.booleans(),
    add_zero_attn=st.booleans(),
    attn_mask=st.sampled_from(MASKS),
    padding=st.sampled_from(PADDINGS),
    need_weights=st.booleans(),
    average=st.booleans(),
    mode=st.sampled_from(["train", "eval", "inference"]),
)
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_every_flag(
    case,
    batch,
    batch_first,
    heads,
    head_dim,
    lengths,
    other_dims,
    bias,
    add_bias_kv,
    add_zero_attn,
    attn_mask,
    padding,
    need_weights,
    average,
    mode,
):
    torch.manual_seed(0)
    embed_dim = heads * head_dim
    other_dims = other_dims and case == "separate"
    kdim, vdim = (embed_dim + 1, embed_dim + 2) if other_dims else (embed_dim, embed_dim)
    q_len, kv_len = lengths[0], lengths[0] if case == "self" else lengths[1]
    theirs, mine = make_pair(
        "MultiheadAttention",
        embed_dim,
        heads,
        bias=bias,
        add_bias_kv=add_bias_kv,
        add_zero_attn=add_zero_attn,
        kdim=kdim,
        vdim=vdim,
        batch_first=batch_first,
        training=mode == "train",
    )
    inputs = make_inputs(case, embed_dim, kdim, vdim, batch, q_len, kv_len, batch_first)
    options = make_masks(attn_mask, padding, heads, batch, q_len, kv_len)
    options |= {"need_weights": need_weights, "average_attn_weights": average}
    assert_same(theirs, mine, inputs, options, with_grad=mode != "inference")


def test_boolean_true_masks_out():
    torch.manual_seed(0)
    module = ours.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 3, 8)
    removed = torch.tensor([[False, True, True], [False, False, True]])
    weights = module(x, x, x, key_padding_mask=removed)[1]
    assert (weights[removed[:, None, :].expand(2, 3, 3)] == 0).all()
    assert (weights[~removed[:, None, :].expand(2, 3, 3)] > 0).all()
    weights = module(x, x, x, attn_mask=torch.ones(3, 3, dtype=torch.bool).triu(1))[1]
    assert (weights.triu(1) == 0).all() and (weights[:, 2] > 0).all()


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("training", [True, False])
def test_a_query_without_keys_gives_zeros_and_no_nan(kind, training):
    torch.manual_seed(0)
    _, mine = make_pair("MultiheadAttention", 8, 2, batch_first=True, training=training)
    x = torch.randn(2, 4, 8, dtype=torch.float64, requires_grad=True)
    padding = torch.zeros(2, 4, dtype=torch.bool)
    padding[1] = True
    if kind == "float":
        padding = torch.zeros(2, 4, dtype=torch.float64).masked_fill(padding, float("-inf"))
    output, weights = mine(x, x, x, key_padding_mask=padding)
    assert torch.equal(weights[1], torch.zeros(4, 4, dtype=torch.float64))
    torch.testing.assert_close(output[1], mine.out_proj.bias.expand(4, 8))
    (output.sum() + weights.square().sum()).backward()
    assert torch.equal(x.grad[1], torch.zeros_like(x.grad[1])) and x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in mine.parameters())
    output, none = mine(x, x, x, key_padding_mask=padding, need_weights=False)
    assert none is None
    torch.testing.assert_close(output[1], mine.out_proj.bias.expand(4, 8))


def test_dropout_falls_on_the_weights_that_are_returned():
    torch.manual_seed(0)
    _, mine = make_pair("MultiheadAttention", 16, 2, dropout=0.3, batch_first=True)
    x = torch.randn(4, 9, 16, dtype=torch.float64)
    torch.manual_seed(5)
    output, weights = mine(x, x, x, average_attn_weights=False)
    v = torch.nn.functional.linear(x, mine.in_proj_weight[32:], mine.in_proj_bias[32:]).unflatten(-1, (2, 8))
    attended = (weights @ v.transpose(1, 2)).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(output, mine.out_proj(attended), rtol=1e-9, atol=1e-11)

    kept = weights != 0
    assert 0.2 < 1 - kept.double().mean().item() < 0.4  # of 648 draws at 0.3: five standard deviations are 0.09
    torch.manual_seed(5)
    averaged = mine(x, x, x)[1]
    torch.testing.assert_close(averaged, weights.mean(1))
    undropped = mine.eval()(x, x, x, average_attn_weights=False)[1]
    torch.testing.assert_close(weights[kept], undropped[kept] / 0.7)


def test_dropout_follows_torch_manual_seed():
    torch.manual_seed(0)
    _, mine = make_pair("MultiheadAttention", 16, 2, dropout=0.5)
    x = torch.randn(9, 2, 16, dtype=torch.float64)

    def outputs(seed, need_weights):
        torch.manual_seed(seed)
        return mine(x, x, x, need_weights=need_weights)[0]

    assert torch.equal(outputs(1, False), outputs(1, False))
    assert not torch.equal(outputs(1, False), outputs(2, False))
    torch.testing.assert_close(outputs(1, True), outputs(1, False), rtol=1e-12, atol=1e-12)


def test_dropout_of_everything():
    theirs, mine = make_pair("MultiheadAttention", 8, 2, dropout=1.0)
    x = torch.randn(3, 2, 8, dtype=torch.float64)
    assert_same(theirs, mine, [x, x, x])
    assert_same(theirs, mine, [x, x, x], {"need_weights": False})


BAD_INPUTS = {  # of a call with x [2, 5, 8] and two heads
    "4-D query": lambda x: [x[None], x, x],
    "2-D key": lambda x: [x, x[0], x],
    "wrong width": lambda x: [x[..., :7], x, x],
    "wrong key width": lambda x: [x, x[..., :7], x[..., :7]],
    "value longer than key": lambda x: [x, x, torch.cat([x, x], 1)],
    "other batch": lambda x: [x, x[:1], x[:1]],
    "float64 key": lambda x: [x, x.double(), x.double()],
}
BAD_OPTIONS = {
    "integer attn_mask": {"attn_mask": torch.ones(5, 5, dtype=torch.int64)},
    "integer padding": {"key_padding_mask": torch.ones(2, 5, dtype=torch.int64)},
    "1-D attn_mask": {"attn_mask": torch.zeros(5)},
    "attn_mask of other size": {"attn_mask": torch.zeros(5, 6)},
    "attn_mask for other heads": {"attn_mask": torch.zeros(3, 5, 5)},
    "3-D padding": {"key_padding_mask": torch.zeros(2, 5, 1)},
    "padding of other length": {"key_padding_mask": torch.zeros(2, 6)},
    "padding of other batch": {"key_padding_mask": torch.zeros(3, 5)},
    "hint without mask": {"is_causal": True},
    "float64 attn_mask": {"attn_mask": torch.zeros(5, 5, dtype=torch.float64)},
    "float16 attn_mask": {"attn_mask": torch.zeros(5, 5, dtype=torch.float16), "need_weights": False},
    "bfloat16 padding": {"key_padding_mask": torch.zeros(2, 5, dtype=torch.bfloat16)},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bad", [*BAD_INPUTS, *BAD_OPTIONS])
def test_wrong_arguments_raise_what_torch_raises(bad, training):
    theirs, mine = make_pair("MultiheadAttention", 8, 2, batch_first=True, dtype=torch.float32, training=training)
    x = torch.randn(2, 5, 8)
    inputs = BAD_INPUTS[bad](x) if bad in BAD_INPUTS else [x, x, x]
    options = BAD_OPTIONS.get(bad, {})
    theirs.train()  # torch's eval path lets some of these pass
    with pytest.raises((RuntimeError, AssertionError)) as their_error:
        theirs(*inputs, **options)
    with pytest.raises(their_error.type, match=r"\S"):
        mine(*inputs, **options)


def test_mismatched_mask_types_warn_as_torch_does():
    _, mine = make_pair("MultiheadAttention", 8, 2)
    x = torch.randn(5, 2, 8, dtype=torch.float64)
    with pytest.warns(UserWarning, match="Support for mismatched key_padding_mask and attn_mask is deprecated"):
        mine(x, x, x, attn_mask=torch.zeros(5, 5), key_padding_mask=torch.zeros(2, 5, dtype=torch.bool))


def test_self_attention_is_one_projection_and_copies_no_head(monkeypatch):
    from bigmodel_kernels import functional

    calls = []

    def linear(*args, _linear=functional.linear, **kwargs):
        calls.append("linear")
        return _linear(*args, **kwargs)

    def attention(query, key, value, _attention=functional.attention, **kwargs):
        calls.append("attention")
        storages = {t.untyped_storage().data_ptr() for t in (query, key, value)}
        assert len(storages) == 1, "query, key and value are views of one packed projection"
        return _attention(query, key, value, **kwargs)

    monkeypatch.setattr(functional, "linear", linear)
    monkeypatch.setattr(functional, "attention", attention)
    x = torch.randn(2, 5, 8)
    ours.MultiheadAttention(8, 2, batch_first=True)(x, x, x, need_weights=False)
    assert calls == ["linear", "attention", "linear"]
    calls.clear()
    ours.MultiheadAttention(8, 2)(x, x, x, need_weights=False)
    assert calls == ["linear", "attention", "linear"]


def test_padding_alone_is_handed_on_unexpanded(monkeypatch):
    from bigmodel_kernels import functional

    masks = []

    def attention(query, key, value, mask, _attention=functional.attention, **kwargs):
        masks.append(mask)
        return _attention(query, key, value, mask=mask, **kwargs)

    monkeypatch.setattr(functional, "attention", attention)
    x = torch.randn(2, 5, 8)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    module = ours.MultiheadAttention(8, 2, batch_first=True)
    module(x, x, x, key_padding_mask=padding, need_weights=False)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    module(x, x, x, key_padding_mask=padding, need_weights=False, attn_mask=causal, is_causal=True)
    assert [tuple(mask.shape) for mask in masks] == [(2, 1, 1, 5)] * 2
    assert all(mask.dtype == torch.bool for mask in masks)


@pytest.mark.parametrize("need_weights", [True, False])
def test_empty_batch(need_weights):
    theirs, mine = make_pair("MultiheadAttention", 8, 2, batch_first=True)
    x = torch.randn(0, 5, 8, dtype=torch.float64)
    output, weights = mine(x, x, x, need_weights=need_weights)
    assert output.shape == (0, 5, 8)
    assert weights.shape == (0, 5, 5) if need_weights else weights is None


def test_nested_tensors_take_torchs_path():
    theirs, mine = make_pair("MultiheadAttention", 8, 2, batch_first=True, dtype=torch.float32, training=False)
    x = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)])
    with torch.no_grad():
        expected = theirs(x, x, x, need_weights=False)[0]
        actual = mine(x, x, x, need_weights=False)[0]
    for a, b in zip(actual.unbind(), expected.unbind(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(AssertionError, match="NestedTensor"):
        mine.train()(x, x, x)
