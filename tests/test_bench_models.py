"""`bigmodel bench --models`: contenders compute the same, failures stay in the table. No timings."""

import io

import pytest
import torch
from bigmodel_bench import bench_attention_decode, causal_lm, minilm, models, models_report
from bigmodel_bench.harness import Timing
from bigmodel_bench.machine import Ceiling
from bigmodel_bench.model_row import ModelRow, failed, timed
from bigmodel_bench.record import new_record
from bigmodel_bench.run import Result
from rich.console import Console
from typer.testing import CliRunner

from bigmodel_kernels.cli import app

CEILING = Ceiling(1, 1e11, 1e10)


def row_of(**milliseconds):
    results = {name: Result(timing=Timing(1e-3 * ms, 1e-3 * ms, 1e-3 * ms, 3, 1)) for name, ms in milliseconds.items()}
    return ModelRow("one | thing", results, {"ours": "20 MiB"})


@pytest.fixture
def small(monkeypatch):
    """Parts that take no time, and a machine whose ceilings are known."""
    monkeypatch.setattr(models.Processor, "ceilings", lambda self, threads, progress: [CEILING])

    def rows(budget_s, on_progress, ceiling):
        on_progress("a part")
        yield row_of(ours=2.0, torch=5.0)

    def missing(budget_s, on_progress, ceiling):
        raise ImportError("no weights here")
        yield

    monkeypatch.setattr(models, "PARTS", {"one": models.Part(rows, 1.0, 1), "missing": models.Part(missing, 1.0, 1)})


def test_ours_stands_first_beside_what_else_there_is():
    row = timed("what", {"ours": lambda turn: None, "other": lambda turn: [].pop()}, 0.01)
    assert list(row.results) == ["ours", "other"] and row.results["ours"].timing
    assert row.results["other"].failure == "IndexError: pop from empty list" and row.ratio("other") is None
    assert row_of(ours=2.0, torch=5.0).ratio("torch") == pytest.approx(2.5)
    assert row_of(ours=2.0, torch=5.0).ratio("ours") is None


def test_the_tables_hold_every_contender_and_every_failure():
    row = row_of(ours=2.0, torch=5.0)
    row.results["onnxruntime"] = failed(ModuleNotFoundError("No module named 'onnxruntime'"))
    done = models.ModelsRecord(new_record([CEILING], quick=False), [row])
    text = models_report.markdown(done).replace("|  |", "| |")
    assert "| one \\| thing | **ours** | 2.00 ± 0 % | | 20 MiB |" in text
    assert "| | torch | 5.00 ± 0 % | 2.50x | |" in text
    assert "failed: ModuleNotFoundError: No module named 'onnxruntime'" in text
    assert "10.0 GB/s" in text and "transformers" in text
    console = Console(width=200, record=True, file=io.StringIO())
    models_report.print_run(done, console)
    printed = console.export_text()
    assert "2.50x" in printed and "No module named 'onnxruntime'" in printed and "one | thing" in printed


def test_the_command_writes_markdown_and_says_what_is_missing(small, tmp_path):
    file = tmp_path / "table.md"
    done = CliRunner().invoke(app, ["bench", "--models", "one", "--markdown", str(file)])
    assert done.exit_code == 0 and "2.50x" in done.output and "**ours**" in file.read_text()
    done = CliRunner().invoke(app, ["bench", "--models", "all"])
    assert done.exit_code == 1 and "no weights here" in done.output


@pytest.mark.parametrize("arguments", [["--models", "one,two"], ["--models", "one", "--quick"]])
def test_what_it_does_not_know_is_refused(small, arguments):
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert isinstance(done.exception, ValueError) and str(done.exception).startswith("[bench] --models")


def test_contenders_generate_the_same_tokens_and_train_alike(monkeypatch):
    monkeypatch.setattr(causal_lm, "NEW_TOKENS", 6)
    monkeypatch.setattr(causal_lm, "BATCH", 1)
    contenders = causal_lm.models()
    (ours,), *others = [generate(0) for generate in causal_lm.generations(contenders).values()]
    assert all(each[0].tolist() == [*b"The ", *ours] for each in others)
    before = contenders[causal_lm.THEIRS].lm_head.weight.clone()
    for step in causal_lm.steps(contenders).values():
        step(0)
    after = [contenders[name].lm_head.weight for name in (causal_lm.THEIRS, causal_lm.WITH_OURS)]
    assert not torch.equal(before, after[0])
    torch.testing.assert_close(after[1], after[0])


def test_wrong_embeddings_are_a_failure(monkeypatch):
    monkeypatch.setattr(minilm, "CONTENDERS", ("ours", "torch eager"))
    monkeypatch.setattr(minilm, "tokens", lambda texts: (torch.zeros(2, 3), torch.ones(2, 3)))
    embeddings = {"ours": torch.tensor([[0.8, 0.6], [1, 0]]), "torch eager": torch.tensor([[1.0, 0], [1, 0]])}
    monkeypatch.setattr(minilm, "make", lambda name, inputs: lambda: embeddings[name])
    (row,) = minilm.rows(0.01, lambda text: None)
    assert "lowest cosine 0.8" in row.results["ours"].failure and list(row.results) == ["ours", "torch eager"]
    assert row.notes == {"torch eager": "lowest cosine 1.0000000"}


def test_decode_says_its_rate(monkeypatch):
    monkeypatch.setattr(models, "DECODE", [("fp32", bench_attention_decode.Shape(1, 64))])
    (row,) = models._decode_rows(0.01, lambda text: None, CEILING)
    rate = 2 * 8 * 64 * 128 * 4 / row.results["ours"].timing.median_s
    assert row.notes["ours"] == f"{rate / 1e9:.1f} GB/s of cache, {rate / 1e8:.0f} % of the memory's"
    assert set(row.results) == {"ours", "torch", "torch, heads as rows"}


def test_cross_entropy_says_its_memory(monkeypatch):
    monkeypatch.setattr(models, "VOCABULARIES", (1024,))
    forward, backward = models._cross_entropy_rows(0.001, lambda text: None, CEILING)
    mebibytes = {name: int(note.removesuffix(" MiB")) for name, note in backward.notes.items()}
    assert mebibytes["torch"] >= 1024 * 1024 * 4 / 2**20 and forward.notes.keys() == {"ours", "torch"}
