"""Lets workers take turns: only one computes at any time, and all have seen the same inputs.

Inputs and truth go to the workers in one file, times come back over their pipes; harness.measure does the rounds.
"""

import json
import math
import select
import subprocess
import tempfile
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from bigmodel_kernels.machine import this_machine

from ..calls import run_once
from ..case import Case
from ..device import Processor
from ..harness import measure
from ..run import Result, Row, cropped, float64, rotations_of
from . import families
from .cases import case_of
from .families import Family
from .rows import PeerRow
from .worker import IDLE_PATIENCE_S

# A row may have to be compiled and a slow contender may need a minute a call; a worker silent for longer has hung.
REPLY_SECONDS = 600
# A worker holds at most so many times what it is given: its copy, outputs and gradients, what a compiler keeps. All
# that are at work on a row together may hold this share of the machine's memory.
HELD_PER_GIVEN = 6
SHARE_OF_MEMORY = 0.6
# What a worker that has closed its output may take to end by itself, with its last words.
ENDING_SECONDS = 10


class WorkerFailed(RuntimeError):
    """A worker that did not start, ended, or fell silent; the text says which."""


class WorkerProcess:
    """One family's process, started with a number of threads."""

    def __init__(self, family: Family, threads: int, scratch: Path, reply_seconds: float = REPLY_SECONDS):
        self.family = family
        self.reply_seconds = reply_seconds
        self.spins = False
        self._log = (scratch / f"{family.name.replace(' ', '-')}-{threads}.log").open("w+")
        self._process = subprocess.Popen(
            families.command(family, threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            env=families.environment(family, threads, scratch),
        )

    def ask(self, **message) -> dict:
        """The worker's answer to one message. Raises WorkerFailed where none comes."""
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise WorkerFailed(self._last_words()) from None
        ready, _, _ = select.select([self._process.stdout], [], [], self.reply_seconds)
        if not ready:
            self.close()
            raise WorkerFailed(f"no answer within {self.reply_seconds:.0f} s; ended")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(self._last_words())
        reply = json.loads(line)
        self.spins |= reply.pop("spins", False)
        return reply

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:  # what was written to a dead worker need not arrive
                    continue

    def _last_words(self) -> str:
        try:
            status = self._process.wait(timeout=ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if self._log.closed:
            return f"worker ended with status {status}"
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        # A package that refuses to be imported may say why in a line of its own, and then fail in another way.
        reasons = [line for line in lines if line.startswith("ERROR")] + lines[-1:]
        return f"worker ended with status {status}" + (f": {reasons[0][:200]}" if reasons else "")


class Ensemble:
    """The workers of one thread count. `absent` says why a family takes no part; `versions` what the others run."""

    def __init__(self, chosen: Sequence[Family], threads: int, scratch: Path):
        self.threads = threads
        self.workers: dict[str, WorkerProcess] = {}
        self.absent: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        for family in chosen:
            self._start(family, scratch)

    def _start(self, family: Family, scratch: Path) -> None:
        if family.absence:
            self.absent[family.name] = family.absence
            return
        try:
            worker = WorkerProcess(family, self.threads, scratch)
        except (RuntimeError, OSError) as error:
            self.absent[family.name] = str(error)
            return
        try:
            reply = worker.ask(do="hello")
        except WorkerFailed as error:
            self.absent[family.name] = str(error)
            worker.close()
            return
        self.versions[family.name] = ", ".join(f"{name} {version}" for name, version in reply["versions"].items())
        self.workers[family.name] = worker

    def notes(self) -> dict[str, str]:
        """Family -> what it runs; whether it left, or never came; whether its threads spin on between calls."""
        notes = dict(self.versions)
        for name, reason in self.absent.items():
            notes[name] = f"{notes[name]}; left: {reason}" if name in notes else f"absent: {reason}"
        for name, worker in self.workers.items():
            if worker.spins:
                notes[name] += f"; threads still ran {IDLE_PATIENCE_S:g} s after a call"
        return notes

    def close(self) -> None:
        """Ends every worker."""
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()

    def drop(self, name: str) -> None:
        """A worker that failed takes no further part."""
        self.workers.pop(name).close()

    def run(self, row: PeerRow, case: Case, budget_s: float, scratch: Path) -> Row:
        """Every contender's error and time on one row: all workers in turns, where memory holds them all."""
        data = scratch / "row.pt"
        sets = write_data(row, case, data)
        result = Row(case.op, case.shape, case.dtype, pass_name(row, case), case.flops, case.bytes, sets)
        result.threads = self.threads
        asked = [name for name, worker in self.workers.items() if row.dtype in worker.family.dtypes]
        held = HELD_PER_GIVEN * sets * data.stat().st_size
        for group in groups(asked, held, SHARE_OF_MEMORY * (this_machine().memory_bytes or math.inf)):
            samplers = {}
            for name in group:
                samplers |= self._prepare(name, result, row=row.to_json(), data=str(data), sets=sets)
            for contender, timing in measure(samplers, budget_s, _remotely).items():
                if isinstance(timing, Exception):
                    result.results[contender].failure = str(timing)
                else:
                    result.results[contender].timing = timing
            for name in [name for name in group if name in self.workers]:
                self.workers[name].ask(do="release")
        data.unlink()
        return result

    def _prepare(self, name: str, result: Row, **message) -> dict[str, Callable[[int, int], int]]:
        """Puts the errors of a worker's contenders into the row; contender -> what samples its time."""
        try:
            reply = self.workers[name].ask(do="prepare", **message)
        except WorkerFailed as error:
            result.results[name] = Result(failure=str(error))
            self.absent[name] = f"{' '.join(result.key)}: {error}"
            self.drop(name)
            return {}
        contenders = {f"{name} {variant}".strip(): variant for variant in reply["contenders"]}
        result.results |= {each: Result(**reply["contenders"][variant]) for each, variant in contenders.items()}
        able = {each: variant for each, variant in contenders.items() if "failure" not in reply["contenders"][variant]}
        return {each: partial(self._sample_ns, name, variant) for each, variant in able.items()}

    def _sample_ns(self, name: str, variant: str, turn: int, calls: int) -> int:
        if name not in self.workers:
            raise WorkerFailed(self.absent[name])
        try:
            reply = self.workers[name].ask(do="sample", contender=variant, turn=turn, calls=calls)
        except WorkerFailed as error:
            self.absent[name] = str(error)
            self.drop(name)
            raise
        if "failure" in reply:
            raise WorkerFailed(reply["failure"])
        return reply["ns"]


def _remotely(sampler: Callable[[int, int], int], first_turn: int, calls: int) -> int:
    """The clock of a contender elsewhere: its worker's own."""
    return sampler(first_turn, calls)


def groups(names: Sequence[str], bytes_each: float, bytes_in_all: float) -> list[Sequence[str]]:
    """The names in their order, as many together as the memory holds, and one at least."""
    fitting = max(1, int(min(bytes_in_all / bytes_each, len(names)))) if names else 1
    return [names[first : first + fitting] for first in range(0, len(names), fitting)]


def pass_name(row: PeerRow, case: Case) -> str:
    """A training step is a whole one, though nothing of it is asked back."""
    return "step" if case.op == "training" else "fwd+bwd" if row.backward else "fwd"


def write_data(row: PeerRow, case: Case, path: Path) -> int:
    """Writes inputs and truth for the workers; returns how many sets of inputs each should rotate.

    A module's parameters are its own, so that it has one set; other rows rotate as many as keep the caches as cold as a
    model would find them.
    """
    inputs = case.make_inputs(torch.Generator().manual_seed(0))
    truth = run_once(case.truth, float64(cropped(case, inputs)), case.differentiable)
    if not case.differentiable:
        inputs = {name: tensor for name, tensor in inputs.items() if not name.startswith("grad_")}
    torch.save({"inputs": inputs, "differentiable": list(case.differentiable), "truth": truth}, path)
    return 1 if row.has_parameters else rotations_of(inputs, Processor())


def run_rows(
    rows: Sequence[PeerRow],
    chosen: Sequence[Family],
    thread_counts: Iterable[int],
    budget_s: float,
    done: Container[tuple] = (),
    on_row: Callable[[Row], None] = lambda row: None,
    on_notes: Callable[[dict[str, str]], None] = lambda notes: None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Measures all rows with each number of threads; `on_row` sees each as it is finished.

    done: (op, shape, dtype, pass, threads) of rows to leave out. on_notes: sees family -> what it runs, or why it is
    absent, before the first row of a number of threads and after the last.
    """
    with tempfile.TemporaryDirectory(prefix="bigmodel_peers_") as folder:
        scratch = Path(folder)
        for threads in thread_counts:
            on_progress(f"starting workers with {threads} thread{'s' if threads > 1 else ''}")
            ensemble = Ensemble(chosen, threads, scratch)
            try:
                on_notes(ensemble.notes())
                for row in rows:
                    case = case_of(row)
                    if (case.op, case.shape, case.dtype, pass_name(row, case), threads) in done:
                        continue
                    on_progress(f"{' '.join((case.op, case.shape, case.dtype))}, {threads} threads")
                    on_row(ensemble.run(row, case, budget_s, scratch))
                on_notes(ensemble.notes())
            finally:
                ensemble.close()
