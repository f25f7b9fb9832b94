"""Contenders in worker processes: who takes turns, what goes over the pipes, and what becomes of those that fail. Fake
contenders, and no timings."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from bigmodel_bench import harness
from bigmodel_bench import report as suite_report
from bigmodel_bench.case import Case, random_tensor
from bigmodel_bench.machine import Ceiling
from bigmodel_bench.peers import conductor, families, goals, plot, suite, verdict
from bigmodel_bench.peers import report as tables
from bigmodel_bench.peers.cases import case_of
from bigmodel_bench.peers.conductor import Ensemble, WorkerFailed, WorkerProcess
from bigmodel_bench.peers.families import Family
from bigmodel_bench.peers.rows import Norm, PeerRow, rows
from bigmodel_bench.record import load_record, new_record
from bigmodel_bench.run import Result, Row

# An engine whose contenders double x. Each call is noted in a file that all workers share: the turns can be read there.
ENGINE = """
import os, time

arguments = ()

def setup(given, threads):
    global arguments
    arguments = given
    if "refuses" in given:
        raise ImportError("needs another torch")

def versions():
    return {"fake": "1.2", "threshold": os.environ["MALLOC_MMAP_THRESHOLD_"], "threads": os.environ["OMP_NUM_THREADS"]}

class Contender:
    def __init__(self, sets, factor, fails_at=None, dies_at=None):
        self.sets, self.factor, self.fails_at, self.dies_at = sets, factor, fails_at, dies_at

    def call(self, turn):
        with open(os.environ["FAKE_LOG"], "a") as log:
            log.write(f"{arguments[0]} {turn}\\n")
        if turn == self.fails_at:
            raise MemoryError("full\\nand a second line")
        if turn == self.dies_at:
            os._exit(3)
        time.sleep(0.002)

    def outputs(self):
        return {"output": self.sets[0]["x"] * self.factor}

def contenders(row):
    print("libraries may print what they like")
    def refuse(sets, differentiable):
        raise RuntimeError("no kernel for this\\nand a second line")
    made = {"right": lambda sets, _: Contender(sets, 2.0)}
    if "more" in arguments:
        made["wrong"] = lambda sets, _: Contender(sets, 2.5)
        made["refusing"] = refuse
        made["failing"] = lambda sets, _: Contender(sets, 2.0, fails_at=2)
    if "dies" in arguments:
        made = {"dying": lambda sets, _: Contender(sets, 2.0, dies_at=2)}
    if "hangs" in arguments:
        made = {"": lambda sets, _: time.sleep(60)}
    return made
"""
ROW = PeerRow(Norm("LayerNorm", 8, 16), "fp32")
CASE = Case(
    op="double",
    shape="100",
    dtype="fp32",
    flops=100,
    bytes=800,
    make_inputs=lambda generator: {"x": random_tensor(generator, "fp32", 100)},
    contenders={},
    truth=lambda inputs: inputs["x"][:10] * 2,  # a leading part is enough
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A scratch folder whose fake engine the workers can import."""
    (tmp_path / "fake_engine.py").write_text(ENGINE)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "calls.log"))
    return tmp_path


def fake(name, *arguments, **options):
    return Family(name, "fake_engine", (name, *arguments), **options)


@pytest.fixture
def ensemble_of(folder):
    """A function that starts workers; they are ended with the test."""
    started = []

    def start(*chosen):
        started.append(Ensemble(chosen, 1, folder))
        return started[-1]

    yield start
    for ensemble in started:
        ensemble.close()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm", "add+LayerNorm"])
def test_truth_of_norms_that_are_wider_than_the_rows_looked_at(kind, backward, tmp_path):
    row = PeerRow(Norm(kind, 300, 520), "fp32", backward)
    conductor.write_data(row, case_of(row), tmp_path / "row.pt")
    truth = torch.load(tmp_path / "row.pt")["truth"]
    assert all(torch.isfinite(x).all() for x in truth.values())


def test_workers_take_turns_and_each_goes_on_with_its_own(folder, ensemble_of):
    row = ensemble_of(fake("ours"), fake("other")).run(ROW, CASE, 0.2, folder)
    assert row.key == ("double", "100", "fp32", "fwd") and row.threads == 1
    first, second = row.results["ours right"], row.results["other right"]
    assert first.error == second.error == 0
    assert first.timing.samples == second.timing.samples >= harness.FEWEST_ROUNDS
    calls = [line.split() for line in (folder / "calls.log").read_text().splitlines()]
    samples = [
        (name, [int(turn) for _, turn in group]) for name, group in itertools.groupby(calls, lambda call: call[0])
    ]
    assert [name for name, _ in samples[:2]] == ["ours", "other"]  # the warm-up
    # Each has one in every round; where a round begins with the one that ended the last, two are one group.
    assert len(samples) > first.timing.samples
    for name in ("ours", "other"):
        turns = [turn for who, group in samples if who == name for turn in group]
        assert turns == sorted(turns) and set(turns) == set(range(turns[-1] + 1))


def test_workers_that_memory_does_not_hold_together_come_one_after_the_other(folder, ensemble_of, monkeypatch):
    monkeypatch.setattr(conductor, "SHARE_OF_MEMORY", 1e-12)
    row = ensemble_of(fake("ours"), fake("other")).run(ROW, CASE, 0.02, folder)
    assert row.results["ours right"].timing and row.results["other right"].timing
    names = [line.split()[0] for line in (folder / "calls.log").read_text().splitlines()]
    assert names == sorted(names, key=["ours", "other"].index)


def test_groups():
    assert conductor.groups("abcde", 3.0, 7.0) == ["ab", "cd", "e"]
    assert conductor.groups("abc", 3.0, 1.0) == ["a", "b", "c"]
    assert conductor.groups("abc", 3.0, float("inf")) == ["abc"]
    assert conductor.groups([], 3.0, 7.0) == []


def test_failures_stay_in_the_row_and_leave_the_others_running(folder, ensemble_of):
    row = ensemble_of(fake("ours"), fake("other", "more")).run(ROW, CASE, 0.05, folder)
    results = row.results
    assert results["other refusing"].failure == "RuntimeError: no kernel for this"
    assert results["other failing"].failure == "MemoryError: full" and results["other failing"].timing is None
    assert results["other wrong"].error == pytest.approx(0.25, rel=1e-5) and results["other wrong"].timing
    assert verdict.is_wrong(row, results["other wrong"]) and not verdict.is_wrong(row, results["other right"])
    assert results["ours right"].timing.samples >= harness.FEWEST_ROUNDS


def test_a_worker_that_dies_leaves_and_the_note_says_so(folder, ensemble_of):
    ensemble = ensemble_of(fake("ours"), fake("mortal", "dies"))
    row = ensemble.run(ROW, CASE, 0.05, folder)
    assert "status 3" in row.results["mortal dying"].failure
    assert row.results["ours right"].timing
    assert list(ensemble.workers) == ["ours"]
    assert "left: worker ended with status 3" in ensemble.notes()["mortal"]
    assert ensemble.run(ROW, CASE, 0.05, folder).results.keys() == {"ours right"}


def test_a_silent_worker_is_ended(folder):
    worker = WorkerProcess(fake("slow", "hangs"), 1, folder)
    try:
        assert worker.ask(do="hello")["threads"] == 1
        worker.reply_seconds = 0.5
        conductor.write_data(ROW, CASE, folder / "row.pt")
        with pytest.raises(WorkerFailed, match=r"no answer within 0 s|no answer within 1 s"):
            worker.ask(do="prepare", row=ROW.to_json(), data=str(folder / "row.pt"), sets=1)
        with pytest.raises(WorkerFailed):
            worker.ask(do="hello")
    finally:
        worker.close()


def test_families_that_cannot_start_say_why(ensemble_of):
    ensemble = ensemble_of(fake("ours"), fake("picky", "refuses"), fake("elsewhere", venv="no such folder"))
    notes = ensemble.notes()
    assert list(ensemble.workers) == ["ours"]
    assert "needs another torch" in notes["picky"] and notes["picky"].startswith("absent: worker ended")
    assert notes["elsewhere"] == "absent: not installed: make peers"
    assert "fake 1.2" in notes["ours"] and "threads 1" in notes["ours"]
    assert f"threshold {families.ALLOCATOR['MALLOC_MMAP_THRESHOLD_']}" in notes["ours"]


def test_families_are_asked_for_their_dtypes_only(folder, ensemble_of):
    row = ensemble_of(fake("ours"), fake("other", dtypes=("bf16",))).run(ROW, CASE, 0.02, folder)
    assert list(row.results) == ["ours right"]


@pytest.mark.skipif(not shutil.which("cc") and not shutil.which("gcc"), reason="no C compiler is here")
def test_the_library_that_mkl_asks_is_built_and_preloaded(folder):
    library = families.mkl_library(folder)
    assert families.environment(Family("x", "y", preloads_mkl=True), 1, folder)["LD_PRELOAD"] == str(library)
    code = "import ctypes; print(ctypes.CDLL(None).mkl_serv_intel_cpu_true())"
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert "LD_PRELOAD" not in families.environment(Family("x", "y"), 1, folder) or "LD_PRELOAD" in os.environ


def test_peers_are_chosen_by_name():
    assert [family.name for family in families.select("torch")][:2] == ["ours", "torch"]
    assert [family.name for family in families.select("openvino, torch")] == ["ours", "openvino", "torch"]
    assert {"onnxruntime", "zentorch", "ipex"} < {family.name for family in families.select("all")}
    with pytest.raises(ValueError, match=r"^\[bench\] peer 'tensorflow' is unknown: expected all, torch, or some of"):
        families.select("tensorflow")


def keys_of(selected):
    return [
        (case.op, case.shape, case.dtype, conductor.pass_name(row, case)) for row in selected for case in [case_of(row)]
    ]


def test_every_row_is_named_once_survives_the_pipe_and_has_counts():
    selected = rows()
    keys = keys_of(selected)
    assert len(keys) == len(set(keys)) > 100
    for row in selected:
        again = PeerRow.from_json(json.loads(json.dumps(row.to_json())))
        assert again == dataclasses.replace(row, smoke=False)
        assert case_of(row).flops > 0 and case_of(row).bytes > 0


def test_goals_belong_to_rows_that_exist():
    assert {key[:4] for key in goals.ELSEWHERE} <= set(keys_of(rows()))


@pytest.mark.parametrize(
    "op, shape, dtype, pass_name, text",
    [
        ("attention", "(1,16,2048,64)", "fp32", "fwd", "1.1x, 80 %"),
        ("attention", "(1,16,2048,128) causal", "bf16", "fwd", "1.4x, 58 %"),
        ("attention", "(4,8,512,64) causal", "bf16", "fwd+bwd", "2x, 40 %"),
        ("attention", "(4,8,512,64) causal", "bf16", "fwd", "2x"),
        ("attention", "(4,8,512,64) padding mask", "fp32", "fwd", "1.3x"),
        ("attention", "(1,4,32,32)", "fp32", "fwd", "1.2x"),
        ("attention", "(4,8,512,64)", "fp16", "fwd+bwd", "3.5x torch, 70 %"),
        ("nn", "MHA weights 512/8, 4x512", "fp32", "fwd", "1.4x"),
        ("nn", "MHA 512/8, 4x512", "fp32", "fwd", "1.15x, 85 %"),
        ("nn", "EncoderLayer 512/8, 4x512", "bf16", "fwd+bwd", "1.25x, 80 %"),
        ("feed_forward", "1x4096, hidden 11008, swiglu", "fp32", "fwd", "1.4x, 90 %"),
        ("something", "else", "fp32", "fwd", "1x"),
    ],
)
def test_goals_are_those_of_their_rows(op, shape, dtype, pass_name, text):
    row = Row(op, shape, dtype, pass_name, 1, 1, 1)
    assert goals.goal_of(row).text(dtype) == text


def test_rows_are_selected_by_op_and_dtype():
    assert all(row.smoke for row in suite.select(smoke=True))
    assert {row.dtype for row in suite.select(["decode"], ["bfloat16"])} == {"bf16"}
    with pytest.raises(ValueError, match=r"^\[bench\] 'attentoin' is unknown: expected one of attention"):
        suite.select(["attentoin"])


@pytest.mark.parametrize("row", suite.select(smoke=True), ids=lambda row: " ".join(map(str, dataclasses.astuple(row))))
@pytest.mark.parametrize("engine", ["engine_ours", "engine_torch"])
def test_ours_and_torch_agree_with_the_truth_on_the_smallest_rows(row, engine, tmp_path):
    """In this process, as a worker would."""
    import importlib

    from bigmodel_bench.peers.worker import Worker

    case = case_of(row)
    sets = conductor.write_data(row, case, tmp_path / "row.pt")
    worker = Worker(importlib.import_module(f"bigmodel_bench.peers.{engine}"), 1)
    replies = worker.prepare(row.to_json(), str(tmp_path / "row.pt"), sets)["contenders"]
    worker.release()
    assert replies
    for name, reply in replies.items():
        assert reply.get("failure") is None, (name, reply)
        assert reply["error"] <= verdict.tolerance(row.dtype), name


def timed(seconds, error=1e-7):
    return Result(timing=harness.summarize([seconds], 1), error=error)


def record_with(**results):
    record = new_record([Ceiling(1, 1e11, 1e10), Ceiling(2, 2e11, 2e10, None, None, 1e11)], quick=True)
    row = Row("attention", "(1,16,2048,64)", "fp32", "fwd", 10**9, 10**6, 1, results, threads=2)
    record.rows.append(row)
    record.peers = {"torch": "torch 9", "zentorch": "absent: not installed: make peers"}
    return record


def test_the_fastest_right_peer_is_named_and_a_wrong_one_is_not():
    record = record_with(
        ours=timed(0.010),
        slow=timed(0.040),
        quick=timed(0.020),
        cheat=timed(0.001, error=0.1),
        broken=Result(failure="x"),
    )
    row = record.rows[0]
    assert verdict.fastest_peer(row)[0] == "quick"
    assert verdict.times_fastest(row) == pytest.approx(2)
    text = tables.markdown(record)
    assert "| quick | 20.0" in text and "2.00x" in text and "50 c" in text and "25 c" in text
    assert "wrong: attention (1,16,2048,64) fp32 fwd, 2 threads, cheat: error 1e-01" in text
    assert "broken failed" in text and "zentorch: absent: not installed" in text
    assert "74 % ORT MultiHeadAttention" in text
    assert "ahead of every peer: 1 of 1 rows" in text
    assert tables.reached(row, record) == [True, False]  # 2x of the 1.1x, 50 of the 80 percent
    assert tables.needed_percent(row, record) == pytest.approx(27.5)  # 1.1 times the peer's 25
    assert "| 1.1x, 80 % | 28 | ✓✗ |" in text and "need more than the ceiling: 0 of 1 rows" in text
    assert (
        "times as fast as its goal says: 1 of 1" in text and "as near to the ceiling as its goal says: 0 of 1" in text
    )


def test_a_wrong_answer_of_ours_is_marked_and_never_ahead():
    record = record_with(ours=timed(0.001, error=0.1), other=timed(0.020))
    assert verdict.times_fastest(record.rows[0]) is None
    assert "wrong" in tables.line_of(record.rows[0], record).cells[5]


def test_an_answer_is_not_wrong_that_misses_as_torch_does():
    results = {
        "ours": timed(0.010, error=0.1),
        "torch sdpa": timed(0.020, error=0.06),
        "cheat": timed(0.001, error=0.2),
    }
    row = record_with(**results).rows[0]
    assert verdict.times_fastest(row) == pytest.approx(2)
    assert verdict.is_wrong(row, results["cheat"]) and not verdict.is_wrong(row, results["torch sdpa"])
    row.results["torch"] = row.results.pop("torch sdpa")  # where torch has one way
    assert verdict.is_wrong(row, results["cheat"]) and not verdict.is_wrong(row, row.results["torch"])


def test_goals_of_fp16_are_of_torch_as_it_is_shipped():
    results = {"ours": timed(0.010), "torch sdpa": timed(0.040), "torch+mkl512 sdpa": timed(0.015)}
    record = record_with(**results, **{"torch medium sdpa": timed(0.012)})
    row = record.rows[0]
    assert verdict.times_fastest(row) == pytest.approx(1.2) and tables.reached(row, record)[0]
    row.dtype = "fp16"
    assert verdict.times_fastest(row) == pytest.approx(1.2)
    assert tables.reached(row, record) == [True, False]  # 4 times torch of the 3.5
    assert tables.needed_percent(row, record) == pytest.approx(3.5 * 5.0 / 0.4)
    row.results["ours"] = timed(0.012)
    assert tables.reached(row, record) == [False, False]


def test_goals_beyond_the_ceiling_are_counted_whatever_ours_took():
    near = timed(0.0051)  # 98 % of the ceiling, which takes 5 ms
    for ours in (timed(0.040), Result(failure="x")):
        record = record_with(ours=ours, near=near, cheat=timed(0.001, error=0.1))
        assert tables.needed_percent(record.rows[0], record) == pytest.approx(1.1 * 5.0 / 0.051)
        assert "need more than the ceiling: 1 of 1 rows" in "\n".join(tables.summary(record))
    alone = record_with(ours=timed(0.040))
    assert tables.needed_percent(alone.rows[0], alone) is None
    assert "| 1.1x, 80 % |  |  |" in tables.markdown(alone)


def test_rows_behind_are_listed():
    record = record_with(ours=timed(0.040), other=timed(0.020))
    assert "0.50x, other" in "\n".join(tables.summary(record))


def test_records_with_peers_are_read_again_and_drawn(tmp_path):
    record = record_with(ours=timed(0.010), other=timed(0.020))
    record.save(tmp_path / "record.json")
    assert load_record(tmp_path / "record.json") == record
    plot.draw(record, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_bf16_rows_are_divided_by_the_dot_products_peak_where_there_is_one():
    row = Row("linear", "x", "bf16", "fwd", 100, 1, 1, {"ours": timed(1.0)})
    assert suite_report.percent_of_peak(row, Ceiling(1, 1000.0, 1e9, 2000.0)) == (pytest.approx(5), "c")
    assert suite_report.percent_of_peak(row, Ceiling(1, 1000.0, 1e9)) == (pytest.approx(10), "c")


def test_a_run_goes_on_where_it_stopped(folder, monkeypatch):
    """Rows that the file has are kept as they are; the others are measured and added."""
    monkeypatch.setattr(suite, "measure_ceilings", lambda threads, progress: [Ceiling(threads, 1e11, 1e10)])
    monkeypatch.setattr(families, "select", lambda names: [fake("ours")])
    monkeypatch.setattr(conductor, "case_of", lambda row: dataclasses.replace(CASE, shape=str(row.work.rows)))
    path = folder / "record.json"
    first, second = (PeerRow(Norm("LayerNorm", size, 16), "fp32") for size in (8, 9))
    suite.run_suite([first], "all", smoke=True, threads=1, json=path)
    before = load_record(path)
    seen = []
    record = suite.run_suite([first, second], "all", True, 1, json=path, resume=True, on_row=seen.append)
    assert [row.shape for row in seen] == ["9"]
    assert [row.shape for row in record.rows] == ["8", "9"] and record.rows[0] == before.rows[0]
    assert load_record(path) == record
    assert record.seconds >= before.seconds
