"""A process that holds one family of contenders and runs them when told: one JSON object a line, in and out.

    {"do": "hello"}                                          -> {"versions": {...}, "threads": n}
    {"do": "prepare", "row": {...}, "data": path, "sets": n} -> {"contenders": {name: {"error": e} | {"failure": text}}}
    {"do": "sample", "contender": name, "turn": t, "calls": n} -> {"ns": nanoseconds of all calls} | {"failure": text}
    {"do": "release"}                                        -> {}

`data` is a file of torch.save: "inputs" and "differentiable" of the row, and "truth", the float64 outputs and gradients
by name, of which each tensor may be a leading part of the whole one. Started as

    python -m bigmodel_bench.peers.worker ENGINE THREADS ARGUMENT...

where ENGINE is a module with setup(arguments, threads), versions() and contenders(row) -> {name: make}, and
make(sets of inputs, differentiable) has call(turn) and outputs(), called without recording for gradients unless some
input is differentiable. It ends at the end of its input.
"""

import ctypes
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

import torch

from ..calls import largest_error, own_copy
from ..harness import wall_clock_ns
from .rows import PeerRow

# A worker answers only when its threads have gone to sleep, so that none spins in another's time. It gives up after
# IDLE_PATIENCE_S, and says so.
IDLE_CHECK_S = 0.001
IDLE_PATIENCE_S = 1.0
# Before each sample calls go untimed for so long: while the others had their turns this process was idle, and a virtual
# machine may have its processors back only milliseconds later.
AWAKENING_S = 0.02


def wait_until_idle() -> bool:
    """Waits until this process uses less than a fifth of a processor; False where it never does."""
    deadline = time.perf_counter() + IDLE_PATIENCE_S
    while time.perf_counter() < deadline:
        used, start = time.process_time(), time.perf_counter()
        time.sleep(IDLE_CHECK_S)
        if time.process_time() - used < 0.2 * (time.perf_counter() - start):
            return True
    return False


def failure_of(error: Exception) -> str:
    """An exception as one line."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"[:300] if first_line else type(error).__name__


class Worker:
    """The contenders of the row at hand."""

    def __init__(self, engine, threads: int):
        self._engine = engine
        self._threads = threads
        self._contenders: dict[str, object] = {}
        self._recording = False

    def hello(self) -> dict:
        return {"versions": self._engine.versions(), "threads": self._threads}

    def prepare(self, row: dict, data: str, sets: int) -> dict:
        """Makes every contender of the row, and compares one call of each with the truth."""
        self.release()
        content = torch.load(data, weights_only=True, mmap=True)
        truth, replies = content["truth"], {}
        self._recording = bool(content["differentiable"])
        for name, make in self._engine.contenders(PeerRow.from_json(row)).items():
            try:
                own_sets = [own_copy(content["inputs"]) for _ in range(sets)]
                contender = make(own_sets, tuple(content["differentiable"]))
                with torch.set_grad_enabled(self._recording):
                    outputs = contender.outputs()
                replies[name] = {"error": largest_error({key: _like(outputs[key], truth[key]) for key in truth}, truth)}
                self._contenders[name] = contender
            except Exception as error:  # the table shows it
                replies[name] = {"failure": failure_of(error)}
        del content
        gc.collect()
        _trim()
        gc.freeze()  # a collection between samples then has nothing old to look through
        return {"contenders": replies}

    def sample(self, contender: str, turn: int, calls: int) -> dict:
        call = self._contenders[contender].call
        awake = time.perf_counter() + AWAKENING_S
        gc.disable()
        try:
            with torch.set_grad_enabled(self._recording):  # around all calls, as users have it, not in each
                call(turn)
                while time.perf_counter() < awake:
                    call(turn)
                elapsed = wall_clock_ns(call, turn, calls)
        except Exception as error:
            return {"failure": failure_of(error)}
        finally:
            gc.enable()
        return {"ns": elapsed}

    def release(self) -> dict:
        """Gives the row's memory back to the system."""
        self._contenders.clear()
        gc.unfreeze()
        gc.collect()
        _trim()
        return {}


def _trim() -> None:
    """Gives freed memory back to the system: raised allocator thresholds would keep it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _like(output: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    return output[tuple(slice(size) for size in true.shape)]


def serve(worker: Worker, lines: TextIO, answer: Callable[[str], None]) -> None:
    """Answers line after line."""
    for line in lines:
        message = json.loads(line)
        reply = getattr(worker, message.pop("do"))(**message)
        if not wait_until_idle():
            reply["spins"] = True
        answer(json.dumps(reply))


def main(engine_name: str, threads: int, *arguments: str) -> None:
    """Serves until the input ends. What libraries print goes to stderr: the real stdout is for answers only."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    engine = importlib.import_module(engine_name)
    engine.setup(arguments, threads)
    serve(Worker(engine, threads), sys.stdin, lambda line: print(line, file=answers, flush=True))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
