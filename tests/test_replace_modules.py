"""bmk.replace_modules on models made of torch.nn."""

import copy

import pytest
import torch
from nn_pairs import assert_same

import bigmodel_kernels as bmk
from bigmodel_kernels import linear_choice
from bigmodel_kernels import nn as ours

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")


class Twice(torch.nn.TransformerEncoderLayer):
    """A user's layer that computes something else."""

    def forward(self, src, **kwargs):
        return 2 * super().forward(src, **kwargs)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Linear(5, 8)
        self.encoder = torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2, norm=torch.nn.LayerNorm(8)
        )
        self.twice = Twice(8, 2, 16, 0.0, batch_first=True)
        self.blocks = torch.nn.ModuleDict({"norm": torch.nn.RMSNorm(8)})
        self.tied = self.encoder.layers[0]
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = torch.nn.Sequential(torch.nn.GroupNorm(2, 8), torch.nn.Linear(8, 3))

    def forward(self, x):
        x = self.tied(self.encoder(self.embedding(x)))
        x = self.blocks["norm"](self.twice(x))
        x = x + self.attention(x, x, x)[0]
        return self.head(x.mean(1))


def make_model():
    torch.manual_seed(0)
    return Model().double()


def test_swaps_in_place_and_computes_the_same():
    theirs, mine = make_model(), make_model()
    parameters = dict(mine.named_parameters())
    modules = dict(mine.named_modules())
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    report = bmk.replace_modules(mine)
    assert all(parameter is parameters[name] for name, parameter in mine.named_parameters())
    assert all(module is modules[name] for name, module in mine.named_modules())
    assert mine.tied is mine.encoder.layers[0]
    assert type(mine.encoder) is ours.TransformerEncoder
    assert type(mine.encoder.layers[1].self_attn) is ours.MultiheadAttention
    assert type(mine.encoder.norm) is ours.LayerNorm and type(mine.blocks["norm"]) is ours.RMSNorm
    assert type(mine.twice) is Twice and type(mine.twice.norm1) is ours.LayerNorm
    x = torch.randn(3, 6, 5, dtype=torch.float64)
    assert_same(theirs, mine, [x])
    assert_same(theirs.eval(), mine.eval(), [x], with_grad=False)
    before = mine(x)
    mine(x).sum().backward()
    optimizer.step()
    assert not torch.equal(mine(x), before)

    assert report.swapped["encoder.layers.0"] == "TransformerEncoderLayer"
    assert "tied" not in report.swapped, "a tied module is reported once, under its first name"
    assert "Twice" in report.left["twice"] and "subclass of torch.nn.TransformerEncoderLayer" in report.left["twice"]
    assert report.no_counterpart == {"GroupNorm": 1}
    assert report.inside["encoder.layers.1.linear2"] == "encoder.layers.1" and len(report.inside) == 2 * 3 + 1 + 1
    text = str(report)
    assert "encoder.layers.0.self_attn: MultiheadAttention" in text and "twice: " in text and "GroupNorm x1" in text


@pytest.mark.parametrize("row", [None, linear_choice.Row("all")])
def test_is_idempotent(row, monkeypatch):
    monkeypatch.setattr(linear_choice, "row_for", lambda *call: row)
    model = make_model()
    first = bmk.replace_modules(model)
    second = bmk.replace_modules(model)
    assert second.swapped == {} and second.already == first.swapped
    assert second.left == first.left and second.no_counterpart == first.no_counterpart


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.MultiheadAttention(8, 2),
        lambda: torch.nn.Transformer(8, 2, 1, 1, 16),
        lambda: torch.nn.LayerNorm(8),
    ],
)
def test_the_model_itself_is_swapped(make):
    model = make()
    report = bmk.replace_modules(model)
    assert type(model) is getattr(ours, type(make()).__name__)
    assert report.swapped["(model)"] == type(model).__name__
    copied = copy.deepcopy(model)
    assert type(copied) is type(model)


def test_training_mode_and_hooks_are_kept():
    model = make_model()
    model.eval()
    model.encoder.layers[0].train()
    seen = []
    handle = model.attention.register_forward_hook(lambda module, args, output: seen.append(type(module)))
    bmk.replace_modules(model)
    assert not model.encoder.training and model.encoder.layers[0].training and model.encoder.layers[0].norm1.training
    x = torch.randn(3, 6, 5, dtype=torch.float64)
    model(x)
    assert seen == [ours.MultiheadAttention]
    handle.remove()
    model(x)
    assert len(seen) == 1


def test_what_may_compute_something_else_is_left():
    model = make_model()
    torch.nn.utils.parametrizations.weight_norm(model.attention, "in_proj_weight")
    model.encoder.norm.forward = lambda x: x
    report = bmk.replace_modules(model)
    assert "parametrized" in report.left["attention"]
    assert "forward was replaced" in report.left["encoder.norm"]
    assert type(model.encoder.norm) is torch.nn.LayerNorm


class WithItsName(torch.nn.MultiheadAttention):
    """A subclass that computes as torch's does, with torch's forward."""

    name = "attention"


class CallsProjection(torch.nn.MultiheadAttention):
    """A subclass whose forward calls out_proj."""

    def forward(self, x):
        return self.out_proj(x)


@pytest.mark.parametrize("row", [None, linear_choice.Row("wherever")])
def test_torchs_class_of_out_proj_is_a_plain_linear_layer(row, monkeypatch):
    """Torch's attention reads its parameters; where anything else may call it, the table of linear layers decides."""
    monkeypatch.setattr(linear_choice, "row_for", lambda *call: row)
    monkeypatch.setattr(linear_choice, "why_unmeasured", lambda *call: None)
    model = torch.nn.ModuleDict({"kept": WithItsName(8, 2), "own": CallsProjection(8, 2)})
    model["alone"] = copy.deepcopy(model["own"].out_proj)
    x = torch.randn(3, 8)
    expected = model["own"](x), model["alone"](x), *model["kept"](x, x, x)
    report = bmk.replace_modules(model)
    assert report.left["kept.out_proj"] == "kept reads its parameters and does not call it"
    for name in ("own.out_proj", "alone"):
        if row is None:
            assert report.left[name] == "ours is not faster in float32"
        else:
            assert report.swapped[name] == "Linear" and report.why[name] == "wherever"
    assert not any("out_proj" in name and "subclass" in reason for name, reason in report.left.items())
    for ours_, theirs in zip((model["own"](x), model["alone"](x), *model["kept"](x, x, x)), expected, strict=True):
        torch.testing.assert_close(ours_, theirs)


def test_refuses_what_is_no_model():
    with pytest.raises(TypeError, match=r"^\[replace_modules\] model is a dict"):
        bmk.replace_modules({})
