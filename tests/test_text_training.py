"""`bigmodel train --task text` and `bigmodel generate`: exact resumption, the schedule, accumulation."""

import dataclasses
import math
import re
import signal
import sys

import pytest
import torch
from typer.testing import CliRunner

from bigmodel_kernels import cli
from bigmodel_kernels.models import CausalLM
from bigmodel_kernels.training.checkpoint import load_checkpoint
from bigmodel_kernels.training.text import load_text, windows
from bigmodel_kernels.training.text_trainer import Stopped, TextOptions, TextTrainer, load_model
from bigmodel_kernels.training.trainer import Trainer, TrainingOptions

SMALL = TextOptions(width=16, layers=2, heads=2, hidden=24, length=24, steps=6, batch=3, report=2, warmup=2)
SMALL_ARGUMENTS = [
    *("--task", "text", "--width", "16", "--layers", "1", "--heads", "2", "--length", "24", "--batch", "3"),
    *("--steps", "4", "--report", "2"),
]


def run(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.output


def trained(options, checkpoint=None, resume=False):
    trainer = TextTrainer(options, checkpoint, resume)
    trainer.run()
    return trainer


def losses(trainer):
    return [(report.step, report.loss, report.held_out) for report in trainer.progress.reports]


def test_the_text_is_real_and_split():
    text = load_text()
    assert len(text.trained) > 400_000 and len(text.held_out) > 20_000
    assert b"The Python interpreter" in bytes(text.trained.tolist())


def test_windows_are_followed_by_their_targets():
    tokens = torch.arange(1000)
    inputs, targets = windows(tokens, 50, 10, 1, 2)
    assert inputs.shape == (50, 10) and torch.equal(targets, inputs + 1)
    assert torch.equal(windows(tokens, 50, 10, 1, 2)[0], inputs)
    assert not torch.equal(windows(tokens, 50, 10, 1, 3)[0], inputs)


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        dataclasses.replace(SMALL, style="gpt", dropout=0.2, accumulate=2),
        dataclasses.replace(SMALL, dtype="bf16", checkpointing=True, kv_heads=1),
    ],
    ids=["defaults", "gpt_dropout", "bf16_checkpointing"],
)
@pytest.mark.parametrize("stop_after", [2, 3])
def test_a_stopped_run_resumes_exactly(options, stop_after, tmp_path):
    path = tmp_path / "c.safetensors"
    whole = trained(options)
    stopped = TextTrainer(options, path)
    with pytest.raises(Stopped):
        stopped.run(on_step=lambda: stopped.progress.step == stop_after and signal.raise_signal(signal.SIGINT))
    assert stopped.progress.step == stop_after
    torch.manual_seed(12345)  # whatever else the process draws must not matter
    resumed = trained(options, path, resume=True)
    assert losses(resumed) == losses(whole)
    for (name, parameter), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_the_loss_falls_below_that_of_single_bytes():
    """Below the entropy of the bytes' frequencies, which no model gets under that does not look at what came before."""
    counts = torch.bincount(load_text().held_out, minlength=256).double()
    share = counts[counts > 0] / counts.sum()
    entropy = -(share * share.log()).sum().item()
    options = dataclasses.replace(SMALL, width=48, steps=150, batch=16, length=48, report=150, learning_rate=1e-2)
    assert losses(trained(options))[-1][2] < entropy - 0.2


@pytest.mark.parametrize("style", ["llama", "gpt"])
def test_accumulated_gradients_are_those_of_one_batch(style, monkeypatch):
    """The same windows in one part or in three."""
    found = []
    for accumulate, batch in ((1, 6), (3, 2)):
        trainer = TextTrainer(dataclasses.replace(SMALL, style=style, accumulate=accumulate, batch=batch, clip=0.0))
        everything = windows(trainer.text.trained, 6, SMALL.length, 99)
        parts = iter([tuple(x[i : i + batch] for x in everything) for i in range(0, 6, batch)])
        monkeypatch.setattr("bigmodel_kernels.training.text_trainer.windows", lambda *_, parts=parts: next(parts))
        loss = trainer._step()
        found.append([torch.tensor(loss), *(parameter.grad for parameter in trainer.model.parameters())])
    for whole, summed in zip(*found, strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped():
    trainer = TextTrainer(dataclasses.replace(SMALL, clip=1e-3))
    trainer._step()
    norms = torch.stack([parameter.grad.norm() for parameter in trainer.model.parameters()])
    assert norms.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_the_schedule_warms_up_and_falls_by_a_cosine():
    options = dataclasses.replace(SMALL, learning_rate=1.0, warmup=4, steps=24)
    rates = [options.learning_rate_at(step) for step in range(24)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[-1] == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[13] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 9 / 19)) / 2)


def test_only_matrices_decay():
    trainer = TextTrainer(dataclasses.replace(SMALL, style="gpt"))
    decaying, others = trainer.optimizer.param_groups
    assert decaying["weight_decay"] == 0.1 and others["weight_decay"] == 0.0
    assert all(parameter.dim() > 1 for parameter in decaying["params"])
    assert sum(len(group["params"]) for group in (decaying, others)) == len(list(trainer.model.parameters()))


def test_other_options_and_other_tasks_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    trained(dataclasses.replace(SMALL, steps=1), path)
    with pytest.raises(ValueError, match=r"^\[train\] .* was trained with steps 1, not 6"):
        TextTrainer(SMALL, path, resume=True)
    with pytest.raises(ValueError, match=r"^\[train\] .* is of task text, not digits"):
        Trainer(TrainingOptions(width=32, heads=2, hidden=32, samples=80), path, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style": "bert"}, "style is 'bert'"),
        ({"dtype": "fp64"}, "dtype is 'fp64'"),
        ({"steps": 0}, "steps is 0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"length": 1}, "length is 1"),
        ({"clip": -1.0}, "clip >= 0"),
        ({"learning_rate": float("inf")}, "learning_rate > 0"),
        ({"weight_decay": float("inf")}, "weight_decay >= 0"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ValueError, match=r"^\[train\] ") as error:
        TextOptions(**change)
    assert message in str(error.value)


def test_train_and_generate_from_the_command_line(tmp_path):
    path = tmp_path / "c.safetensors"
    code, output = run("train", *SMALL_ARGUMENTS, "--checkpoint", path)
    assert code == 0, output
    assert re.findall(r"^Step (\d): Loss = \d+\.\d+", output, re.MULTILINE) == ["2", "4"]
    assert load_checkpoint(path).facts["progress"]["step"] == 4
    code, output = run("generate", "def", "--tokens", 8, "--checkpoint", path, "--temperature", 0)
    assert code == 0, output
    expected = load_model(path).generate([list(b"def")], 8)[0]
    assert ("def" + bytes(expected).decode("utf-8", "replace")) in output
    assert re.search(r"8 tokens in \d+\.\d\d s: \d+ per second", output)
    code, output = run("generate", "def", "--tokens", 8, "--checkpoint", path, "--temperature", 0, "--beams", 3)
    assert code == 0 and "8 tokens in" in output


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "c.safetensors"
    trained(dataclasses.replace(SMALL, steps=1), path)
    return path


def spell(monkeypatch, words):
    """Makes any CausalLM write these bytes behind a prompt of three."""

    def hidden(self, tokens, cache):  # how many tokens there are
        counts = torch.arange(cache.longest + 1, cache.longest + tokens.size(1) + 1)
        cache.advance(tokens.size(1))
        return counts[:, None].expand(len(tokens), -1, 1)

    def logits(self, counts):
        return 100.0 * torch.nn.functional.one_hot(torch.tensor(list(words))[counts[..., 0] - 3], 256)

    monkeypatch.setattr(CausalLM, "hidden", hidden)
    monkeypatch.setattr(CausalLM, "logits", logits)


@pytest.mark.parametrize("beams", ["1", "2"])
def test_generate_stops_before_a_text(beams, checkpoint, monkeypatch):
    """Of one byte or several; a text of which the model writes only the beginning does not stop it."""
    spell(monkeypatch, " naïve text".encode())

    def written(*arguments):
        options = ["--checkpoint", checkpoint, "--tokens", "12", "--temperature", "0", "--beams", beams, *arguments]
        return CliRunner().invoke(cli.app, ["generate", "def", *map(str, options)], catch_exceptions=False).stdout

    assert written() == "def naïve text\n"
    assert written("--stop", "x") == "def naïve te\n"
    assert written("--stop", "ïve", "--stop", "none") == "def na\n"
    assert written("--stop", " ") == "def\n"
    assert written("--stop", "texts", "--stop", "def") == "def naïve text\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-p", "2"], "[generate] top_p is 2.0"),
        (["--temperature", "0", "--top-k", "3"], "[generate] top_k is 3 and the temperature 0"),
        (["--beams", "2"], "[generate] beams above 1 search"),
        (["--stop", ""], "[generate] stop holds an empty sequence"),
        (["--tokens", "100"], "[generate] the longest prompt and 100 new tokens are 103"),
        (["--seed", str(1 << 64)], "[generate] seed is 18446744073709551616"),
    ],
)
def test_a_mistake_in_generating_is_one_line_and_nothing_on_stdout(arguments, message, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bigmodel", "generate", "def", "--checkpoint", str(checkpoint), *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    out, err = capsys.readouterr()
    assert out == "" and message in " ".join(err.split())


def test_resuming_takes_the_options_that_the_command_line_leaves_open(tmp_path):
    path = tmp_path / "c.safetensors"
    stopped = TextTrainer(SMALL, path)
    with pytest.raises(Stopped):
        stopped.run(on_step=lambda: stopped.progress.step == 3 and signal.raise_signal(signal.SIGINT))
    code, output = run("train", "--task", "text", "--resume", "--checkpoint", path)
    assert code == 0, output
    assert "Resumed after step 3" in " ".join(output.split()) and "Step 6: Loss = " in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "text", "--gate", "none"], "--gate is no option of --task text"),
        (["--steps", "3"], "--steps: expected --task text"),
        (["--task", "speech"], "--task speech"),
        (["--task", "text", "--width", "30", "--heads", "4"], "heads is 4"),
    ],
)
def test_options_of_the_other_task_are_refused(arguments, message):
    with pytest.raises(ValueError, match=r"^\[(train|CausalLM)\] ") as error:
        CliRunner().invoke(cli.app, ["train", *arguments], catch_exceptions=False)
    assert message in str(error.value)
