"""bmk.models.SequenceClassifier: fused against the same model of torch.nn's modules, and what it can learn."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn_pairs import assert_same

from bigmodel_kernels import functional
from bigmodel_kernels.models import SequenceClassifier


def make_pair(dtype=torch.float64, **options):
    """The fused model and that of torch.nn's modules, each from the same seed."""
    models = []
    for compute in ("torch", "bigmodel"):
        torch.manual_seed(3)
        models.append(SequenceClassifier(compute=compute, **options).to(dtype))
    theirs, mine = models
    assert theirs.state_dict().keys() == mine.state_dict().keys()
    assert all(torch.equal(value, mine.state_dict()[name]) for name, value in theirs.state_dict().items())
    return theirs, mine


@settings(max_examples=20, deadline=None)
@given(
    layers=st.integers(1, 2),
    activation=st.sampled_from(["relu", "gelu", "gelu_tanh", "silu"]),
    gate=st.sampled_from([None, "hidden", "input"]),
    head=st.sampled_from(["linear", "concat"]),
    padded=st.booleans(),
    training=st.booleans(),
)
def test_tokens(layers, activation, gate, head, padded, training):
    torch.manual_seed(0)
    options = {"vocabulary": 11, "width": 12, "heads": 3, "classes": 4, "hidden": 20, "length": 7}
    theirs, mine = make_pair(layers=layers, activation=activation, gate=gate, head=head, **options)
    tokens = torch.randint(11, (3, 6))
    padding = torch.arange(6) >= torch.tensor([6, 2, 4])[:, None] if padded else None
    outputs = []
    for model in (theirs.train(training), mine.train(training)):
        logits = model(tokens, padding)
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3, 1])).backward()
        outputs.append([logits, *(parameter.grad for parameter in model.parameters())])
    assert outputs[1][0].shape == (3, 4)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("head", ["linear", "concat"])
def test_patches(head):
    theirs, mine = make_pair(width=12, heads=3, classes=4, image=(2, 8, 6), patch=(4, 2), head=head)
    images = torch.randn(3, 2, 8, 6, dtype=torch.float64)
    assert_same(theirs, mine, [images])
    assert mine.position.shape == (2 * 3, 12)
    patches = mine.embedding(images)
    patch = images[1, :, 4:8, 2:4].flatten()  # the patch in row 1, column 1
    torch.testing.assert_close(patches[1, 4], mine.embedding.linear(patch))


def test_padding_changes_nothing_for_what_is_kept():
    torch.manual_seed(0)
    model = SequenceClassifier(11, 12, 3, length=9).double()
    tokens = torch.randint(11, (2, 9))
    padding = torch.arange(9).expand(2, 9) >= 5
    torch.testing.assert_close(model(tokens, padding), model(tokens[:, :5]))
    padding[1] = True
    assert model(tokens, padding).isfinite().all()


def test_concat_head_is_one_linear_layer_on_the_pair_without_the_pair(monkeypatch):
    torch.manual_seed(0)
    theirs, mine = make_pair(vocabulary=11, width=12, heads=3)
    tokens = torch.randint(11, (2, 9))
    expected = theirs(tokens)
    assert mine.head.weight.shape == (10, 24)
    calls, joined = [], []
    linear, cat = functional.linear, torch.cat
    monkeypatch.setattr(functional, "linear", lambda *args, **kwargs: calls.append(kwargs) or linear(*args, **kwargs))
    monkeypatch.setattr(torch, "cat", lambda *args, **kwargs: joined.append(cat(*args, **kwargs)) or joined[-1])
    torch.testing.assert_close(theirs(tokens), expected)
    assert [tuple(pair.shape) for pair in joined] == [(2, 24)], "the probe sees torch.nn's pair"
    joined.clear()
    torch.testing.assert_close(mine(tokens), expected, rtol=1e-9, atol=1e-11)
    assert calls[-1]["residual"] is not None
    assert all(pair.size(-1) != 24 for pair in joined)


def test_losses_agree_in_the_first_steps_of_training():
    theirs, mine = make_pair(torch.float32, vocabulary=32, width=32, heads=4, length=16, hidden=32)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(32, (64, 16), generator=generator)
    classes = tokens[:, 3] % 10
    losses = []
    for model in (theirs, mine):
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses.append([])
        for _ in range(15):
            loss = torch.nn.functional.cross_entropy(model(tokens), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    torch.testing.assert_close(torch.tensor(losses[1][:5]), torch.tensor(losses[0][:5]), rtol=1e-4, atol=1e-4)
    assert losses[1][-1] < 0.8 * losses[1][0], "it learns"


def test_copies_and_files():
    model = SequenceClassifier(11, 12, 3, compute="torch")
    tokens = torch.randint(11, (2, 9))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for copied in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(copied(tokens), model(tokens))


@pytest.mark.parametrize("training", [True, False])
def test_compiles_to_one_graph(training):
    model = SequenceClassifier(11, 12, 3).train(training)
    tokens = torch.randint(11, (2, 9))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), model(tokens))


@pytest.mark.parametrize(
    "arguments",
    [
        {"head": "mean"},
        {"compute": "jax"},
        {"layers": 0},
        {"image": (1, 8, 8), "patch": (3, 2)},
    ],
)
def test_refuses(arguments):
    with pytest.raises(ValueError, match=r"^\[SequenceClassifier\]"):
        SequenceClassifier(11, 12, 3, **arguments)


def test_refuses_a_sequence_too_long():
    with pytest.raises(ValueError, match=r"^\[SequenceClassifier\] the sequence has length 9"):
        SequenceClassifier(11, 12, 3, length=8)(torch.randint(11, (2, 9)))
