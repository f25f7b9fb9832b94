"""Bad input gives an error that begins with the op, says what was wrong and what was expected."""

import pytest
import torch

import bigmodel_kernels as bmk
from bigmodel_kernels import backends


def x(*shape, dtype=torch.float32, **options):
    return torch.zeros(shape, dtype=dtype, **options)


Q, K = x(2, 4, 5, 8), x(2, 2, 7, 8)
SEED = torch.tensor(1)


def attention(query=Q, key=K, value=K, **options):
    return lambda: bmk.attention(query, key, value, **options)


def weights(query=Q, key=K, lse=x(2, 4, 5), **options):  # noqa: B008 (a constant tensor)
    return lambda: bmk.attention_weights(query, key, lse, **options)


def sdpa(query=Q, key=Q, value=Q, *arguments, **options):
    return lambda: bmk.scaled_dot_product_attention(query, key, value, *arguments, **options)


def linear(*arguments, **options):
    return lambda: bmk.linear(*arguments, **options)


def feed_forward(input=x(3, 8), w1=x(6, 8), b1=None, w2=x(8, 6), b2=None, **options):  # noqa: B008 (constant tensors)
    return lambda: bmk.feed_forward(input, w1, b1, w2, b2, **options)


def add_norm(*arguments, **options):
    return lambda: bmk.add_norm(*arguments, **options)


COS = x(9, 4)
TARGET = torch.tensor([0, 3, -100])


def rotary(query=x(2, 4, 5, 8), key=x(2, 2, 5, 8), cos=COS, sin=COS, positions=None, **options):  # noqa: B008
    return lambda: bmk.rotary(query, key, cos, sin, positions, **options)


def cross_entropy(hidden=x(3, 8), weight=x(4, 8), target=TARGET, bias=None, **options):  # noqa: B008 (constant tensors)
    return lambda: bmk.linear_cross_entropy(hidden, weight, target, bias, **options)


BAD = [
    # attention: what the tensors are
    (attention([1.0]), TypeError, "[attention] query is a list; expected a tensor"),
    (attention(value=None), TypeError, "[attention] value is missing; expected a tensor"),
    (attention(key=K.double()), ValueError, "[attention] key has dtype torch.float64, query torch.float32"),
    (attention(Q.int(), K.int(), K.int()), ValueError, "[attention] query has dtype torch.int32; expected floating"),
    (attention(key=K.to("meta")), ValueError, "[attention] key is on meta, query on cpu; expected one device"),
    (attention(value=K.to_sparse()), ValueError, "[attention] value is nested or sparse; expected a dense tensor"),
    (
        attention(*[torch.nested.nested_tensor([x(2, 3, 8), x(2, 4, 8)])] * 3),
        ValueError,
        "[attention] query is nested or sparse; expected a dense tensor",
    ),
    # attention: shapes
    (
        attention(x(8), x(8), x(8)),
        ValueError,
        "[attention] query has shape [8]; expected [..., heads, q_len, head_dim]",
    ),
    (attention(x(2, 4, 5, 0), x(2, 2, 7, 0)), ValueError, "[attention] query has head_dim 0; expected at least 1"),
    (attention(key=x(2, 2, 7, 9)), ValueError, "[attention] key has shape [2, 2, 7, 9], query [2, 4, 5, 8]"),
    (attention(key=x(3, 2, 7, 8)), ValueError, "[attention] key has shape [3, 2, 7, 8], query [2, 4, 5, 8]"),
    (attention(key=x(2, 7, 8)), ValueError, "[attention] key has shape [2, 7, 8], query [2, 4, 5, 8]"),
    (
        attention(key=x(2, 3, 7, 8), value=x(2, 3, 7, 8)),
        ValueError,
        "[attention] key has 3 heads, query 4: query heads must be a multiple of key heads",
    ),
    (attention(key=x(2, 0, 7, 8)), ValueError, "[attention] key has 0 heads, query 4"),
    (
        attention(value=x(2, 2, 6, 8)),
        ValueError,
        "[attention] value has shape [2, 2, 6, 8]; expected [2, 2, 7, 'value_dim']",
    ),
    (attention(value=x(2, 4, 7, 8)), ValueError, "[attention] value has shape [2, 4, 7, 8]"),
    (attention(value=x(2, 2, 7, 0)), ValueError, "with value_dim at least 1"),
    # attention: options
    (attention(mask=[True]), TypeError, "[attention] mask is a list; expected a tensor"),
    (
        attention(mask=x(5, 7).long()),
        ValueError,
        "[attention] mask has dtype torch.int64; expected bool (True: may attend)",
    ),
    (attention(mask=x(5, 7).half()), ValueError, "[attention] mask has dtype torch.float16; expected bool"),
    (
        attention(mask=x(5, 6)),
        ValueError,
        "[attention] mask has shape [5, 6]; expected one that broadcasts to [2, 4, 5, 7]",
    ),
    (attention(mask=x(1, 1, 1, 1, 1)), ValueError, "[attention] mask has shape [1, 1, 1, 1, 1]; expected one that"),
    (attention(mask=x(5, 7, device="meta")), ValueError, "[attention] mask is on meta, query on cpu"),
    (attention(causal="middle"), ValueError, "[attention] causal is 'middle'; expected False, True, 'top_left'"),
    (attention(causal=2), ValueError, "[attention] causal is 2; expected False, True, 'top_left' or 'bottom_right'"),
    (attention(scale=float("nan")), ValueError, "[attention] scale is nan; expected a finite number"),
    (attention(scale="big"), ValueError, "[attention] scale is 'big'; expected a finite number"),
    (attention(scale=True), ValueError, "[attention] scale is True; expected a finite number"),
    (attention(scale=1j), ValueError, "[attention] scale is 1j; expected a finite number"),
    (attention(scale=x()), ValueError, "[attention] scale is tensor("),
    (attention(softcap=-1.0), ValueError, "[attention] softcap is -1.0; expected a finite number of at least 0"),
    (attention(window=3), ValueError, "[attention] window is 3; expected (left, right) or None"),
    (attention(window=(1, -2)), ValueError, "[attention] window is (1, -2); expected integers >= 0"),
    (attention(window=(1.5, 2)), ValueError, "[attention] window is (1.5, 2); expected integers >= 0"),
    (attention(dropout_p=1.0), ValueError, "[attention] dropout_p is 1.0; expected a number with 0 <= dropout_p < 1"),
    (attention(dropout_p=-0.1), ValueError, "[attention] dropout_p is -0.1; expected a number with 0 <= dropout_p < 1"),
    (
        attention(dropout_p=0.1, dropout_seed=3),
        ValueError,
        "[attention] dropout_seed is a int; expected an int64 tensor",
    ),
    (
        attention(dropout_p=0.1, dropout_seed=x(1)),
        ValueError,
        "[attention] dropout_seed is torch.float32, 1 dimensions",
    ),
    (attention(sinks=x(2)), ValueError, "[attention] sinks has shape [2]; expected [4]"),
    (attention(sinks=x(4).long()), ValueError, "[attention] sinks has dtype torch.int64; expected floating point"),
    (
        attention(alibi_slopes=x(3)),
        ValueError,
        "[attention] alibi_slopes has shape [3]; expected [4] or [2, 4] or [1, 4]",
    ),
    (
        attention(alibi_slopes=x(4).requires_grad_()),
        ValueError,
        "[attention] alibi_slopes requires a gradient, which is not implemented; pass alibi_slopes.detach()",
    ),
    (
        attention(backend="gpu"),
        ValueError,
        "[attention] backend is 'gpu'; expected one of cpu, cuda, triton, reference",
    ),
    (attention(backend="cuda"), RuntimeError, "[attention] the cuda backend cannot run this: "),
    (attention(Q.double(), K.double(), K.double(), backend="cpu"), RuntimeError, "the dtype is torch.float64; the cpu"),
    # attention_weights
    (weights(lse=x(2, 4, 6)), ValueError, "[attention_weights] lse has shape [2, 4, 6]; expected [2, 4, 5]"),
    (weights(lse=None), TypeError, "[attention_weights] lse is missing; expected a tensor"),
    (
        weights(dropout_p=0.5),
        ValueError,
        "[attention_weights] dropout_seed is missing; expected the seed that attention",
    ),
    (weights(key=x(2, 3, 7, 8)), ValueError, "[attention_weights] key has 3 heads, query 4"),
    # scaled_dot_product_attention
    (
        sdpa(Q, Q, Q, x(5, 5), is_causal=True),
        ValueError,
        "[scaled_dot_product_attention] attn_mask and is_causal are both given; expected at most one of them",
    ),
    (sdpa(Q, K, K), ValueError, "enable_gqa=True groups the query's heads"),
    (sdpa(x(8), x(8), x(8)), ValueError, "[scaled_dot_product_attention] query, key and value have at least 2"),
    (sdpa(Q, x(3, 4, 7, 8), x(3, 4, 7, 8)), ValueError, "whose leading dimensions do not broadcast"),
    # linear
    (linear(3.0, x(4, 8)), TypeError, "[linear] x is a float; expected a tensor"),
    (linear(x(3, 8), x(4, 9)), ValueError, "[linear] weight has shape [4, 9]; expected [out_features, 8]"),
    (linear(x(3, 8), x(8)), ValueError, "[linear] weight has shape [8]; expected [out_features, 8]"),
    (linear(x(3, 8), x(0, 8)), ValueError, "[linear] weight has shape [0, 8]; expected [out_features, 8]"),
    (linear(x(3, 0), x(4, 0)), ValueError, "[linear] x has shape [3, 0]; expected [..., features] with features >= 1"),
    (linear(x(), x(4, 8)), ValueError, "[linear] x has shape []; expected [..., features]"),
    (linear(x(3, 8), x(4, 8), x(5)), ValueError, "[linear] bias has shape [5]; expected [4]"),
    (linear(x(3, 8), x(4, 8), x(4).half()), ValueError, "[linear] bias has dtype torch.float16, x torch.float32"),
    (
        linear(x(3, 8), x(4, 8), activation="tanh"),
        ValueError,
        "[linear] activation is 'tanh'; expected one of none, relu",
    ),
    (linear(x(3, 8), x(4, 8), residual=x(1, 4)), ValueError, "[linear] residual has shape [1, 4]; expected [3, 4]"),
    # feed_forward
    (feed_forward(w1=x(6, 9)), ValueError, "[feed_forward] w1 has shape [6, 9]; expected [out_features, 8]"),
    (feed_forward(w2=x(8, 5)), ValueError, "[feed_forward] w2 has shape [8, 5]; expected [out_features, 6]"),
    (feed_forward(w2=None), TypeError, "[feed_forward] w2 is missing; expected a tensor"),
    (feed_forward(b1=x(5)), ValueError, "[feed_forward] b1 has shape [5]; expected [6]"),
    (feed_forward(activation=None), ValueError, "[feed_forward] activation is None; expected one of relu, gelu"),
    (feed_forward(gate="output"), ValueError, "[feed_forward] gate is 'output'; expected one of none, input, hidden"),
    (feed_forward(gate="hidden"), ValueError, "[feed_forward] w_gate is missing; expected a weight for gate 'hidden'"),
    (feed_forward(w_gate=x(6, 8)), ValueError, "[feed_forward] w_gate or b_gate is given, but gate is None"),
    (feed_forward(gate="input", w_gate=x(6, 8)), ValueError, "[feed_forward] w_gate has shape [6, 8]; expected [8, 8]"),
    (feed_forward(residual=x(3, 7)), ValueError, "[feed_forward] residual has shape [3, 7]; expected [3, 8]"),
    (feed_forward(dropout_p=2), ValueError, "[feed_forward] dropout_p is 2; expected a number with 0 <= dropout_p < 1"),
    # add_norm
    (add_norm(x(3, 8), x(3, 7), None), ValueError, "[add_norm] residual has shape [3, 7]; expected [3, 8]"),
    (
        add_norm(x(3, 8), x(3, 8).half(), None),
        ValueError,
        "[add_norm] residual has dtype torch.float16, x torch.float32",
    ),
    (add_norm(x(3, 8), None, x(7)), ValueError, "[add_norm] weight has shape [7]; expected [8]"),
    (
        add_norm(x(3, 8), None, x(8).half()),
        ValueError,
        "[add_norm] weight has dtype torch.float16; expected float32 or",
    ),
    (
        add_norm(x(3, 8).half(), None, x(8), x(8).half()),
        ValueError,
        "[add_norm] weight has dtype torch.float32, bias torch.float16; expected one dtype",
    ),
    (add_norm(x(3, 8), None, None, kind="batch"), ValueError, "[add_norm] kind is 'batch'; expected one of layer, rms"),
    (
        add_norm(x(3, 8), None, None, eps=-1.0),
        ValueError,
        "[add_norm] eps is -1.0; expected a finite number of at least 0",
    ),
    (add_norm(None, None, None), TypeError, "[add_norm] x is missing; expected a tensor"),
    # rotary
    (rotary(x(4, 5, 8)), ValueError, "[rotary] query has shape [4, 5, 8]; expected [batch, heads, length, head_dim]"),
    (rotary(key=x(2, 2, 6, 8)), ValueError, "[rotary] key has shape [2, 2, 6, 8]; expected [2, 'kv_heads', 5, 8]"),
    (rotary(cos=x(9, 5)), ValueError, "[rotary] sin has shape [9, 4]; expected"),
    (rotary(cos=x(4, 4), sin=x(4, 4)), ValueError, "[rotary] cos has shape [4, 4]; expected [5 or more, pairs]"),
    (rotary(cos=x(9, 5), sin=x(9, 5)), ValueError, "[rotary] cos has 5 pairs; expected 1 to 4, half of head_dim"),
    (rotary(cos=COS.half(), sin=COS.half()), ValueError, "[rotary] cos has dtype torch.float16; expected float32 or"),
    (rotary(cos=None), TypeError, "[rotary] cos is missing; expected a tensor"),
    (rotary(cos=x(9, 4).requires_grad_()), ValueError, "[rotary] cos requires a gradient, which is not implemented"),
    (
        rotary(positions=torch.tensor([0, 1, 2, 3, 9])),
        RuntimeError,
        "[rotary] positions holds 9, expected numbers from 0 to 8, rows of cos and sin",
    ),
    (rotary(positions=torch.arange(4)), ValueError, "[rotary] positions has shape [4]; expected [5] or [2, 5]"),
    (
        rotary(positions=torch.arange(5).int()),
        ValueError,
        "[rotary] positions has dtype torch.int32; expected torch.int64",
    ),
    (
        rotary(x(2, 1, 5, 8).expand(2, 4, 5, 8), inplace=True),
        ValueError,
        "[rotary] query has shape [2, 4, 5, 8] and strides [40, 0, 8, 1], whose elements share memory; expected memory",
    ),
    (
        rotary(key=x(80).as_strided((2, 2, 5, 8), (30, 7, 8, 1)), inplace=True, backend="reference"),
        ValueError,
        "[rotary] key has shape [2, 2, 5, 8] and strides [30, 7, 8, 1], whose elements share memory; expected memory",
    ),
    (rotary(Q, Q, inplace=True), RuntimeError, "[rotary] query and key are one memory, expected two"),
    # linear_cross_entropy
    (
        cross_entropy(target=torch.tensor([0, 4, 1])),
        RuntimeError,
        "[linear_cross_entropy] target holds 4, expected numbers from 0 to 3 or ignore_index, -100",
    ),
    (
        cross_entropy(target=TARGET[:2]),
        ValueError,
        "[linear_cross_entropy] target has shape [2]; expected [3]",
    ),
    (
        cross_entropy(target=TARGET.int()),
        ValueError,
        "[linear_cross_entropy] target has dtype torch.int32; expected torch.int64",
    ),
    (
        cross_entropy(weight=x(4, 9)),
        ValueError,
        "[linear_cross_entropy] weight has shape [4, 9]; expected [out_features, 8]",
    ),
    (cross_entropy(bias=x(5)), ValueError, "[linear_cross_entropy] bias has shape [5]; expected [4]"),
    (
        cross_entropy(label_smoothing=1.5),
        ValueError,
        "[linear_cross_entropy] label_smoothing is 1.5; expected a finite number of at least 0 and at most 1",
    ),
    (cross_entropy(z_loss=-1.0), ValueError, "[linear_cross_entropy] z_loss is -1.0; expected a finite number of at"),
    (
        cross_entropy(reduction="avg"),
        ValueError,
        "[linear_cross_entropy] reduction is 'avg'; expected one of mean, sum, none",
    ),
    # choosing
    (lambda: bmk.use_backend("cdua"), ValueError, "[use_backend] backend is 'cdua'; expected one of cpu, cuda"),
    (lambda: bmk.explain("atention", Q), ValueError, "[explain] 'atention' is not an op; expected one of attention"),
    (lambda: bmk.explain("attention"), TypeError, "[explain] expected the tensors that attention would be called with"),
    (lambda: backends.unsupported_reasons("conv", "cpu"), ValueError, "[conv] is not an op; expected one of attention"),
]


@pytest.mark.parametrize("call, kind, text", BAD, ids=[text[:60] for _, _, text in BAD])
def test_error(call, kind, text):
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert message.startswith("[") and text in message


DIRECT = {
    "attention key shape": lambda ops: ops.attention(Q, x(2, 2, 7, 9), K),
    "attention dtype": lambda ops: ops.attention(Q.double(), K.double(), K.double()),
    "attention causal": lambda ops: ops.attention(Q, K, K, causal="middle"),
    "attention dropout without a seed": lambda ops: ops.attention(Q, K, K, dropout_p=0.5),
    "attention mask shape": lambda ops: ops.attention(Q, K, K, x(2, 4, 5, 6)),
    "attention_backward grad shape": lambda ops: ops.attention_backward(Q[..., :3], None, Q, K, K, Q, x(2, 4, 5)),
    "attention_weights lse": lambda ops: ops.attention_weights(Q, K, x(2, 4, 6)),
    "linear weight": lambda ops: ops.linear(x(3, 8), x(4, 9)),
    "linear activation": lambda ops: ops.linear(x(3, 8), x(4, 8), activation="tanh"),
    "linear packed by nobody": lambda ops: ops.linear(x(3, 8), x(4, 8), packed_weight=x(3).byte()),
    "linear_pack shape": lambda ops: ops.linear_pack(x(3)),
    "feed_forward gate": lambda ops: ops.feed_forward(x(3, 8), x(6, 8), None, x(8, 6), None, gate="output"),
    "feed_forward without w_gate": lambda ops: ops.feed_forward(x(3, 8), x(6, 8), None, x(8, 6), None, gate="hidden"),
    "add_norm kind": lambda ops: ops.add_norm(x(3, 8), kind="batch"),
    "rotary cos": lambda ops: ops.rotary(Q, None, x(9, 5), x(9, 5)),
    "rotary in place": lambda ops: ops.rotary_(x(2, 1, 5, 8).expand(2, 4, 5, 8), None, COS, COS),
    "rotary in place, overlapping": lambda ops: ops.rotary_(
        x(80).as_strided((2, 2, 5, 8), (30, 7, 8, 1)), None, COS, COS
    ),
    "rotary positions": lambda ops: ops.rotary(Q, None, COS, COS, torch.full((5,), -1)),
    "linear_cross_entropy target": lambda ops: ops.linear_cross_entropy(x(3, 8), x(4, 8), TARGET[:2]),
    "linear_cross_entropy smoothing": lambda ops: ops.linear_cross_entropy(
        x(3, 8), x(4, 8), TARGET, label_smoothing=2.0
    ),
    "add_norm weight": lambda ops: ops.add_norm(x(3, 8), None, x(7)),
}


@pytest.mark.parametrize("name", DIRECT)
def test_the_ops_themselves_check(name):
    """A call of torch.ops.bigmodel past functional is refused as cleanly."""
    with pytest.raises(RuntimeError, match=r"^\[\w+\] ") as caught, torch.no_grad():
        DIRECT[name](torch.ops.bigmodel)
    assert str(caught.value).startswith(f"[{name.split()[0]}] ")


# A valid call of each op by the shapes of its tensors, and ways to spoil one of them.
VALID = {
    "attention": {"query": (2, 4, 5, 8), "key": (2, 2, 7, 8), "value": (2, 2, 7, 6)},
    "attention_weights": {"query": (2, 4, 5, 8), "key": (2, 2, 7, 8), "lse": (2, 4, 5)},
    "linear": {"x": (3, 8), "weight": (4, 8), "bias": (4,), "residual": (3, 4)},
    "feed_forward": {
        "x": (3, 8),
        "w1": (6, 8),
        "b1": (6,),
        "w2": (8, 6),
        "b2": (8,),
        "w_gate": (6, 8),
        "b_gate": (6,),
        "residual": (3, 8),
    },
    "add_norm": {"x": (3, 8), "residual": (3, 8), "weight": (8,), "bias": (8,)},
    "rotary": {"query": (2, 4, 5, 8), "key": (2, 2, 5, 8), "cos": (9, 4), "sin": (9, 4)},
    "linear_cross_entropy": {"hidden": (3, 8), "weight": (4, 8), "bias": (4,)},
}
SPOILT = {
    "no dimension": lambda tensor: tensor.new_zeros(()),
    "one dimension less": lambda tensor: tensor[0],
    "one dimension more": lambda tensor: tensor[None],
    "first size": lambda tensor: torch.cat([tensor, tensor]),
    "first size 0": lambda tensor: tensor[:0],
    "last size": lambda tensor: torch.cat([tensor, tensor], -1),
    "last size 1": lambda tensor: tensor[..., :1],
    "last size 0": lambda tensor: tensor[..., :0],
    "float16": lambda tensor: tensor.half(),
    "float64": lambda tensor: tensor.double(),
    "integers": lambda tensor: tensor.int(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "meta": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "missing": lambda tensor: None,
    "a number": lambda tensor: 1.0,
    "a list": lambda tensor: tensor.tolist(),
}


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("op", VALID)
@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "training"])
def test_kernels_refuse_what_the_checks_refuse(op, spoilt, gradient):
    """A call without a backend's name leaves the checks to its kernel; one that names it is checked in Python."""
    options = {"feed_forward": {"gate": "hidden"}, "linear_cross_entropy": {"target": TARGET}}.get(op, {})
    for name in VALID[op]:
        tensors = {each: x(*shape) for each, shape in VALID[op].items()}
        tensors[next(each for each in tensors if each != name)].requires_grad_(gradient)
        tensors[name] = SPOILT[spoilt](tensors[name])
        errors = []
        for backend in (None, "cpu"):
            try:
                getattr(bmk, op)(**tensors, **options, backend=backend)
                errors.append(None)
            except Exception as error:
                errors.append((type(error), str(error)))
        if name == next(iter(tensors)) and spoilt == "float64":
            continue  # alone it would choose the reference
        assert errors[0] == errors[1], name
