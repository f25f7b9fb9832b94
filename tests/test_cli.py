"""`bigmodel` as a user runs it, and the training behind it: exact resumption, interruption, torch's losses."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from bigmodel_kernels import backends, cli
from bigmodel_kernels.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bigmodel_kernels.training.digits import distorted, load_digits, tokens_of
from bigmodel_kernels.training.options import TrainingOptions
from bigmodel_kernels.training.trainer import OURS, TORCH, Stopped, Trainer

SMALL = TrainingOptions(width=32, heads=2, hidden=32, samples=80, epochs=3, batch=16)
SMALL_ARGUMENTS = ["--width", "32", "--heads", "2", "--hidden", "32", "--samples", "80", "--batch", "16"]


def run(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.output


def bigmodel(*arguments, **options):
    """A process of its own, as a shell would start it."""
    command = [sys.executable, "-m", "bigmodel_kernels.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def trained(options, checkpoint=None, resume=False):
    trainer = Trainer(options, checkpoint, resume)
    trainer.run()
    return trainer


def losses(trainer, name=OURS):
    return [epoch.loss[name] for epoch in trainer.progress.epochs]


# info


def test_info_names_machine_targets_versions_and_every_backend():
    code, output = run("info")
    assert code == 0
    for word in ("processor", "caches", "memory", torch.__version__, "(active)", *backends.BACKENDS):
        assert word in output
    for reasons in backends.info()["backends"].values():
        for reason in reasons:
            assert reason.split()[-1] in output


# bench and compare


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    paths = folder / "a.json", folder / "a.md"
    code, output = run(
        "bench", "--quick", "--op", "add_norm", "--dtype", "fp32", "--json", paths[0], "--markdown", paths[1]
    )
    return code, output, *paths


def test_bench_prints_a_table_and_writes_a_record(record):
    code, output, path, markdown = record
    assert code == 0, output
    assert "2048x1024 layer" in output and "slower than torch" in output
    fields = json.loads(path.read_text())
    assert fields["machine"]["processor"] and fields["cpu_target"] and fields["versions"]["torch"] == torch.__version__
    assert fields["ceilings"][-1]["threads"] == fields["threads"]
    assert {row["pass_name"] for row in fields["rows"]} == {"fwd", "fwd+bwd"}
    for row in fields["rows"]:
        assert set(row["results"]) == {"ours", "torch"}
        for result in row["results"].values():
            assert result["timing"]["median_s"] > 0 and 0 <= result["error"] < 1e-5
            assert result["peak_extra_bytes"] > 0
    assert markdown.read_text().count("| add_norm |") == len(fields["rows"])


def test_compare_prints_both_and_draws(record, tmp_path):
    _, _, path, _ = record
    code, output = run("compare", path, path, "--picture", tmp_path / "chart.png")
    assert code == 0
    assert output.count("1.00x") >= 8
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--op", "attentoin"], "[bench] 'attentoin' is unknown: expected one of attention"),
        (["bench", "--dtype", "fp8"], "[bench] 'fp8' is unknown: expected one of fp32"),
        (["compare", "none.json", "none.json"], "[compare] cannot read none.json"),
        (["train", "--inputs", "sounds"], "[train] inputs is 'sounds': expected one of patches, pixels"),
        (["train", "--resume", "--checkpoint", "none.safetensors"], "[train] there is no checkpoint none.safetensors"),
        (["train", "--heads", "7"], "[train] heads is 7: expected a divisor of width"),
        (["train", "--dropout", "2"], "[train] dropout is 2.0: expected 0 or more, below 1"),
        (["train", "--width", "-8"], "[train] width is -8: expected at least 1"),
        (["train", "--batch", "0"], "[train] batch is 0: expected at least 1"),
        (["train", "--split-seed", str(1 << 64)], "[train] split_seed is 18446744073709551616: expected -"),
        (["train", "--task", "text", "--dropout", "2"], "[CausalLM] dropout is 2.0: expected 0 or more, below 1"),
        (["train", "--task", "text", "--steps", "1", "--hidden", "0"], "[CausalLM] hidden is 0: expected at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_status_one(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bigmodel", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["bench", "--quick"], "--json"),
        (["bench", "--quick"], "--markdown"),
        (["compare", "a.json", "b.json"], "--picture"),
        (["train"], "--checkpoint"),
        (["train"], "--curve"),
        (["generate"], "--checkpoint"),
    ],
)
def test_a_folder_in_place_of_a_file_is_refused_before_the_work(command, option, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bigmodel", *command, option, str(tmp_path)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert f"Invalid value for '{option}'" in error and "directory." in error


# training


def test_train_prints_losses_and_accuracy_and_writes_checkpoint_and_curve(tmp_path):
    code, output = run(
        "train",
        *SMALL_ARGUMENTS,
        "--epochs",
        2,
        "--checkpoint",
        tmp_path / "c.safetensors",
        "--curve",
        tmp_path / "c.png",
    )
    assert code == 0, output
    assert len(re.findall(r"^Epoch [12]: Loss = \d+\.\d+", output, re.MULTILINE)) == 2
    assert re.search(r"on 16 held-out images: [01]\.\d{4}", output)
    assert load_checkpoint(tmp_path / "c.safetensors").facts["progress"]["epoch"] == 2
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_compare_trains_both_to_the_same_losses(tmp_path):
    trainer = trained(dataclasses.replace(SMALL, compare=True))
    assert losses(trainer) == pytest.approx(losses(trainer, TORCH), rel=1e-4)
    assert all(set(epoch.step_s) == {OURS, TORCH} for epoch in trainer.progress.epochs)
    assert set(trainer.accuracies()) == {OURS, TORCH}


@pytest.mark.parametrize("inputs", ["patches", "pixels"])
def test_the_loss_falls(inputs):
    found = losses(trained(dataclasses.replace(SMALL, inputs=inputs, epochs=6)))
    assert found[-1] < found[0]


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        dataclasses.replace(SMALL, compare=True, gate="hidden", head="linear", activation="silu"),
        dataclasses.replace(SMALL, dropout=0.2, inputs="pixels"),
        dataclasses.replace(SMALL, dtype="bf16"),
    ],
    ids=["defaults", "compare", "dropout", "bf16"],
)
def test_a_resumed_run_computes_the_very_same_losses(options, tmp_path):
    path = tmp_path / "c.safetensors"
    whole = trained(options)
    trained(dataclasses.replace(options, epochs=1), path)
    torch.manual_seed(12345)  # whatever else the process draws must not matter
    resumed = trained(options, path, resume=True)
    assert [epoch.loss for epoch in resumed.progress.epochs] == [epoch.loss for epoch in whole.progress.epochs]
    for (name, parameter), other in zip(
        whole.contestants[0].model.named_parameters(), resumed.contestants[0].model.parameters(), strict=True
    ):
        assert torch.equal(parameter, other), name


def test_a_run_stopped_inside_an_epoch_resumes_exactly(tmp_path):
    path = tmp_path / "c.safetensors"
    options = dataclasses.replace(SMALL, dropout=0.2)
    whole = trained(options)
    stopped = Trainer(options, path)
    steps = iter(range(1, 100))
    with pytest.raises(Stopped):
        stopped.run(on_step=lambda: next(steps) == 6 and signal.raise_signal(signal.SIGINT))
    assert (stopped.progress.epoch, stopped.progress.step) == (1, 2)
    assert losses(trained(options, path, resume=True)) == losses(whole)


def test_ctrl_c_leaves_a_checkpoint_that_resumes(tmp_path):
    path = tmp_path / "c.safetensors"
    process = bigmodel("train", *SMALL_ARGUMENTS, "--epochs", 100000, "--patience", 100000, "--checkpoint", path)
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED, (output, errors)
    assert "Continue with the same command and --resume" in " ".join(output.split())
    done = load_checkpoint(path).facts["progress"]["epoch"]
    assert done >= 1
    assert sorted(os.listdir(tmp_path)) == ["c.safetensors"]
    code, output = run("train", "--resume", "--epochs", done + 1, "--checkpoint", path)
    assert code == 0, output
    assert f"Epoch {done + 1}: Loss = " in output


def test_resuming_with_other_options_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    trained(dataclasses.replace(SMALL, epochs=1), path)
    with pytest.raises(ValueError, match=r"^\[train\] .* was trained with hidden 32, not 64"):
        Trainer(dataclasses.replace(SMALL, hidden=64), path, resume=True)


def test_training_ends_when_the_loss_no_longer_falls():
    trainer = trained(dataclasses.replace(SMALL, learning_rate=1e-12, distortion=0.0, epochs=50, patience=2))
    assert trainer.progress.epoch == 3


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path):
    import safetensors.torch

    path = tmp_path / "c.safetensors"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"^\[train\] .* is not a safetensors file"):
        load_checkpoint(path)
    safetensors.torch.save_file({"x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"^\[train\] .* not a checkpoint of this version"):
        load_checkpoint(path)


def test_an_interrupted_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, Checkpoint({"x": torch.ones(3)}, {"epoch": 1}))

    def full_disk(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, Checkpoint({"x": torch.zeros(3)}, {"epoch": 2}))
    assert load_checkpoint(path).facts == {"epoch": 1}
    assert torch.equal(load_checkpoint(path).tensors["x"], torch.ones(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": "3x3"}, "patch is '3x3'"),
        ({"dtype": "fp64"}, "dtype is 'fp64'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"classes": 9}, "classes is 9"),
        ({"samples": 5000}, "samples is 5000"),
        ({"inputs": "pixels", "vocabulary": 16}, "vocabulary is 16"),
        ({"decay": 0.0}, "0 < decay"),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"learning_rate": float("nan")}, "learning_rate > 0"),
        ({"learning_rate": float("inf")}, "learning_rate > 0"),
        ({"distortion": float("inf")}, "distortion >= 0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616"),
        ({"split_seed": -(1 << 63) - 1}, "split_seed is -9223372036854775809"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ValueError, match=r"^\[train\] ") as error:
        TrainingOptions(**change)
    assert message in str(error.value)


def test_the_split_is_fixed_disjoint_and_real():
    digits, again = load_digits(1797, seed=0), load_digits(1797, seed=0)
    assert torch.equal(digits.images, again.images) and torch.equal(digits.held_out_labels, again.held_out_labels)
    assert len(digits.labels) == 1438 and len(digits.held_out_labels) == 359
    every = torch.cat([digits.images, digits.held_out_images]).flatten(1)
    assert len(torch.unique(every, dim=0)) == 1797
    assert set(torch.cat([digits.labels, digits.held_out_labels]).tolist()) == set(range(10))
    assert tokens_of(digits.images).min() == 0 and tokens_of(digits.images).max() == 16


def test_distortion_is_seeded_and_of_strength_zero_none():
    images = load_digits(100, seed=0).images
    twice = [distorted(images, 1.0, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*twice) and not torch.allclose(twice[0], images, atol=0.05)
    torch.testing.assert_close(distorted(images, 0.0, torch.Generator()), images, rtol=1e-4, atol=1e-5)
