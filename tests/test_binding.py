"""The language boundary, op by op and without functional: shapes and layouts of outputs, inputs of any rank and
strides, zero sizes, and an error that begins with `[op] ` for everything that a kernel must not see."""

import math

import pytest
import torch

import bigmodel_kernels  # noqa: F401 (registers the ops)

ops = torch.ops.bigmodel


def heads(batch=2, count=3, length=5, features=4, **options):
    return torch.randn(batch, count, length, features, **options)


def test_outputs_follow_the_order_of_inputs():
    inside = torch.randn(2, 5, 3, 4).transpose(1, 2)  # memory is [batch, length, heads, features]
    outside = heads()
    assert ops.attention(inside, outside, outside)[0].stride() == inside.stride()
    assert ops.attention(outside, inside, inside)[0].is_contiguous()
    output, lse = ops.attention(inside, outside, inside)
    grads = ops.attention_backward(output, None, inside, outside, inside, output, lse)
    assert [grad.stride() for grad in grads[:3]] == [inside.stride(), outside.stride(), inside.stride()]


@pytest.mark.parametrize("count, length", [(1, 5), (3, 1)])
def test_a_dimension_of_size_one_does_not_decide_the_order(count, length):
    query = torch.randn(2, length, count, 4).transpose(1, 2)
    assert ops.attention(query, query, query)[0].is_contiguous()


def test_outputs_not_asked_for_have_zero_elements():
    query, mask, sinks = heads(), torch.zeros(1, 1, 1, 5), torch.zeros(3)
    output, lse = ops.attention(query, query, query, mask, None, sinks)
    saved = (query, query, query, output, lse)
    everything = ops.attention_backward(output, lse, *saved, mask, None, sinks, output_mask=[True] * 5)
    assert [grad.shape for grad in everything] == [query.shape, query.shape, query.shape, mask.shape, sinks.shape]
    nothing = ops.attention_backward(output, lse, *saved, mask, None, sinks, output_mask=[False] * 5)
    assert [grad.shape for grad in nothing] == [(0,)] * 5
    unlearned = ops.attention_backward(output, lse, *saved, mask > 0, output_mask=[False] * 3 + [True] * 2)
    assert [grad.shape for grad in unlearned] == [(0,)] * 5


LAYOUTS = {
    "one dimension": lambda: torch.randn(6),
    "five dimensions": lambda: torch.randn(2, 3, 1, 2, 6),
    "rows in any order": lambda: torch.randn(4, 3, 6).transpose(0, 1),
    "features apart": lambda: torch.randn(6, 4).t(),
    "expanded": lambda: torch.randn(1, 6).expand(5, 6),
    "expanded inside": lambda: torch.randn(3, 1, 6).expand(3, 4, 6),
    "every second": lambda: torch.randn(4, 3, 12)[:, :, ::2],
    "no rows": lambda: torch.randn(0, 6),
    "no rows in the middle": lambda: torch.randn(3, 0, 5, 6).transpose(0, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_any_layout(layout):
    x = LAYOUTS[layout]()
    weight, bias = torch.randn(7, 6), torch.randn(7)
    expected = x.double() @ weight.double().t() + bias.double()
    residual = torch.randn(expected.shape)
    output, preactivation = ops.linear(x, weight, bias, residual, save_preactivation=True)
    torch.testing.assert_close(preactivation, expected.float())
    torch.testing.assert_close(output, (expected + residual).float())
    w2 = torch.randn(6, 7)
    hidden = expected.relu()
    torch.testing.assert_close(ops.feed_forward(x, weight, bias, w2, None)[0], (hidden @ w2.double().t()).float())
    normed, mean = ops.add_norm(x)[1:3]
    torch.testing.assert_close(normed, torch.nn.functional.layer_norm(x, (6,)))
    assert mean.shape == x.shape[:-1]
    for result in (output, preactivation, normed):
        assert result.is_contiguous()


@pytest.mark.parametrize("shape", [(33, 65), (7, 6), (16, 16)])
def test_equal_weights_are_packed_into_equal_bytes(shape):
    weight = torch.randn(shape)
    packed = ops.linear_pack(weight)
    for garbage in (1, 254):  # freed again, so that packing finds it where the kernel writes nothing
        torch.full_like(packed, garbage)
        assert torch.equal(ops.linear_pack(weight), packed)


def test_no_rows_give_zero_gradients():
    x, weight, bias = torch.randn(0, 6), torch.randn(7, 6), torch.randn(7)
    grads = ops.linear_backward(torch.randn(0, 7), x, weight, bias)
    assert [grad.shape for grad in grads] == [x.shape, weight.shape, bias.shape]
    assert all(not grad.any() for grad in grads)
    w2 = torch.randn(6, 7)
    grads = ops.feed_forward_backward(torch.randn(0, 6), x, weight, bias, w2, None)
    assert [grad.shape for grad in grads] == [x.shape, weight.shape, bias.shape, w2.shape, (0,), (0,), (0,)]
    assert all(not grad.any() for grad in grads)
    _, _, mean, rstd = ops.add_norm(x, None, weight[0])
    grads = ops.add_norm_backward(x, None, x, weight[0], mean, rstd)
    assert [grad.shape for grad in grads] == [x.shape, (6,), (6,)]
    assert all(not grad.any() for grad in grads)


@pytest.mark.parametrize("with_sinks", [False, True])
def test_no_keys(with_sinks):
    query, key = heads(), heads(length=0)
    sinks = torch.tensor([1.0, -2.0, 3.0]) if with_sinks else None
    output, lse = ops.attention(query, key, key, None, None, sinks)
    assert output.shape == query.shape and not output.any()
    expected = sinks.view(1, 3, 1) if with_sinks else torch.tensor(-math.inf)
    assert torch.equal(lse, expected.expand(2, 3, 5))
    grad_lse = torch.randn(2, 3, 5)
    grads = ops.attention_backward(
        torch.randn_like(output), grad_lse, query, key, key, output, lse, None, None, sinks, output_mask=[True] * 5
    )
    assert not any(grad.any() for grad in grads[:4])
    if with_sinks:
        torch.testing.assert_close(grads[4], grad_lse.sum((0, 2)))
    assert ops.attention_weights(query, key, lse).shape == (2, 3, 5, 0)


@pytest.mark.parametrize("batch, length", [(0, 5), (2, 0)])
def test_no_queries(batch, length):
    query, key, mask, sinks = heads(batch, 3, length), heads(batch, 3, 7), torch.randn(1, 1, 1, 7), torch.zeros(3)
    output, lse = ops.attention(query, key, key, mask, None, sinks)
    assert output.shape == query.shape and lse.shape == query.shape[:3]
    saved = (query, key, key, output, lse)
    grads = ops.attention_backward(output, lse, *saved, mask, None, sinks, output_mask=[True] * 5)
    assert [grad.shape for grad in grads] == [query.shape, key.shape, key.shape, mask.shape, sinks.shape]
    assert not any(grad.any() for grad in grads)
    assert ops.attention_weights(query, key, lse, mask).shape == (batch, 3, length, 7)
    grads = ops.attention_weights_backward(
        torch.randn(batch, 3, length, 7), query, key, lse, mask, output_mask=[True] * 4
    )
    assert [grad.shape for grad in grads] == [query.shape, key.shape, lse.shape, mask.shape]
    assert not any(grad.any() for grad in grads)


def test_averaging_over_no_heads_gives_zeros():
    query = heads(count=0)
    assert torch.equal(ops.attention_weights(query, query, query[..., 0], average_heads=True), torch.zeros(2, 1, 5, 5))


x, w1, w2 = torch.randn(5, 6), torch.randn(7, 6), torch.randn(6, 7)

REFUSED = {
    "float64": (lambda q: ops.attention(q.double(), q, q), "attention] query has dtype float64, expected float32"),
    "mixed dtypes": (lambda q: ops.attention(q, q.half(), q), "attention] key has dtype float16, expected float32"),
    "integers": (lambda q: ops.linear(x.long(), w1.long()), "linear] input has dtype int64, expected float32"),
    "complex": (lambda q: ops.linear(x.cfloat(), w1), "linear] input has dtype complex64, expected float32"),
    "three dimensions": (lambda q: ops.attention(q[0], q, q), r"attention] query has shape \[3, 5, 4\], expected \["),
    "head sizes": (lambda q: ops.attention(q, q[..., :3], q), r"attention] key has shape \[2, 3, 5, 3\], expected"),
    "batches": (lambda q: ops.attention(q, q[:1], q), r"attention] key has shape \[1, 3, 5, 4\], expected"),
    "key and value": (lambda q: ops.attention(q, q, q[:, :, :2]), r"attention] value has shape \[2, 3, 2, 4\], exp"),
    "head counts": (lambda q: ops.attention(q, q[:, :2], q[:, :2]), "attention] key has 2 heads, query 3: query"),
    "no key heads": (lambda q: ops.attention(q, q[:, :0], q[:, :0]), "attention] key has 0 heads, query 3: query"),
    "no head size": (lambda q: ops.attention(q[..., :0], q[..., :0], q), "attention] query has head_dim 0, expected"),
    "no value size": (lambda q: ops.attention(q, q, q[..., :0]), "attention] value has value_dim 0, expected"),
    "mask of two dimensions": (lambda q: ops.attention(q, q, q, torch.ones(5, 5)), r"attention] mask has shape \[5, 5"),
    "mask sizes": (lambda q: ops.attention(q, q, q, torch.ones(2, 3, 5, 4)), r"attention] mask has shape \[2, 3, 5, 4"),
    "integer mask": (lambda q: ops.attention(q, q, q, torch.ones(1, 1, 5, 5).int()), "attention] mask has dtype int32"),
    "slopes": (lambda q: ops.attention(q, q, q, None, torch.ones(2)), r"attention] alibi_slopes has shape \[2\]"),
    "half slopes": (lambda q: ops.attention(q, q, q, None, torch.ones(3).half()), "attention] alibi_slopes has dtype"),
    "sinks": (lambda q: ops.attention(q, q, q, None, None, torch.ones(4)), r"attention] sinks has shape \[4\], expect"),
    "causal": (lambda q: ops.attention(q, q, q, causal="left"), "attention] causal is 'left', expected 'none', 'top_l"),
    "scale": (lambda q: ops.attention(q, q, q, scale=math.nan), "attention] scale is nan, expected a finite number"),
    "window": (lambda q: ops.attention(q, q, q, window_left=-2), "attention] window_left is -2, expected -1"),
    "softcap": (lambda q: ops.attention(q, q, q, softcap=-1.0), "attention] softcap is -1, expected 0"),
    "dropout_p": (
        lambda q: ops.attention(q, q, q, dropout_p=1.0),
        "attention] dropout_p is 1, expected 0 <= dropout_p",
    ),
    "no seed": (lambda q: ops.attention(q, q, q, dropout_p=0.5), "attention] dropout_p is 0.5 but dropout_seed is"),
    "float seed": (
        lambda q: ops.attention(q, q, q, None, None, None, torch.ones(()), dropout_p=0.5),
        "attention] dropout_seed has dtype float32",
    ),
    "lse": (
        lambda q: ops.attention_weights(q, q, q[0, ..., 0]),
        r"attention_weights] lse has shape \[3, 5\], expected",
    ),
    "grad_output": (
        lambda q: ops.attention_backward(q[:1], None, q, q, q, q, q[..., 0]),
        r"attention_backward] grad_output has shape \[1, 3, 5, 4\]",
    ),
    "linear widths": (lambda q: ops.linear(x, w2), r"linear] weight has shape \[6, 7\], expected \[\*, 6\]"),
    "linear scalar": (lambda q: ops.linear(x[0, 0], w1), "linear] input has no dimensions, expected at least one"),
    "linear bias": (lambda q: ops.linear(x, w1, x[0]), r"linear] bias has shape \[6\], expected \[7\]"),
    "linear residual": (
        lambda q: ops.linear(x, w1, None, x),
        r"linear] residual has shape \[5, 6\], expected \[5, 7\]",
    ),
    "linear empty weight": (lambda q: ops.linear(x, w1[:0]), r"linear] weight has shape \[0, 6\], expected at least"),
    "linear activation": (lambda q: ops.linear(x, w1, activation="tanh"), "linear] activation is 'tanh', expected"),
    "linear packed": (lambda q: ops.linear(x, w1, None, None, x), "linear] packed_weight was not made by linear_pack"),
    "feed_forward widths": (lambda q: ops.feed_forward(x, w1, None, w1, None), r"feed_forward] w2 has shape \[7, 6\]"),
    "gate": (lambda q: ops.feed_forward(x, w1, None, w2, None, gate="out"), "feed_forward] gate is 'out', expected"),
    "no gate": (lambda q: ops.feed_forward(x, w1, None, w2, None, w1), "feed_forward] gate is 'none' but w_gate or"),
    "no w_gate": (lambda q: ops.feed_forward(x, w1, None, w2, None, gate="hidden"), "feed_forward] gate is given but"),
    "input gate": (
        lambda q: ops.feed_forward(x, w1, None, w2, None, w1, gate="input"),
        r"feed_forward] w_gate has shape \[7, 6\], expected \[6, 6\]",
    ),
    "norm residual": (lambda q: ops.add_norm(x, x[0]), r"add_norm] residual has shape \[6\], expected \[5, 6\]"),
    "norm weight": (lambda q: ops.add_norm(x, None, x[:, 0]), r"add_norm] weight has shape \[5\], expected \[6\]"),
    "norm dtypes": (lambda q: ops.add_norm(x, None, x[0].half()), "add_norm] weight has dtype float16, expected float"),
    "norm kind": (lambda q: ops.add_norm(x, kind="batch"), "add_norm] kind is 'batch', expected 'layer' or 'rms'"),
    "norm eps": (lambda q: ops.add_norm(x, eps=-1.0), "add_norm] eps is -1, expected 0 or a positive number"),
    "norm of nothing": (lambda q: ops.add_norm(x[:, :0]), r"add_norm] input has shape \[5, 0\], expected at least one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(RuntimeError, match=r"^\[" + message):
        call(heads())
