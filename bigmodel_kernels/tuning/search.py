"""The search: each candidate is timed; the fastest that pass, held against the reference, are timed again, in turns,
beside the default, which wins all that is within the noise."""

import contextlib
import functools
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from .. import tuned_launches
from ..testing import FORWARD, GRADIENT, assert_as_exact
from ..triton import choice
from .candidates import candidates
from .device import Limits
from .problems import DTYPES, Problem

Timer = Callable[[Callable[[], object]], float]

_FINALISTS = 3
_ROUNDS = 5
_NOISE = 0.02  # a candidate must be faster than the default by more
# How a compiler or a driver refuses a launch that asks too much.
_REFUSALS = (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError, triton.CompilationError)


@dataclass(frozen=True)
class Result:
    """What a search found. failures: how many candidates were refused or wrong, by reason."""

    problem: Problem
    key: tuple
    launch: Any
    default: Any
    milliseconds: float
    default_milliseconds: float
    tried: int
    failures: dict[str, int]


def milliseconds(call: Callable[[], object]) -> float:
    """The median time of a call on the current CUDA device, by its events, with a cold L2 cache."""
    return triton.testing.do_bench(call, warmup=25, rep=100, return_mode="median")


def tune(
    problems: Sequence[Problem],
    device: torch.device,
    identity: tuned_launches.Identity,
    limits: Limits,
    folder: Path | None = None,
    timer: Timer = milliseconds,
    candidates_of: Callable[..., list] = candidates,
    on_problem: Callable[[Problem, int], None] = lambda problem, total: None,
    on_candidate: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """Searches one problem after the other, and keeps each result on disk before it goes on.

    on_problem hears of a problem and how many candidates it has, on_candidate of each that is done with.
    Raises: ValueError, before anything is measured, for a table on disk that is damaged or cannot be written.
    """
    tuned_launches.save(identity, [], folder)
    for problem in problems:
        listed = candidates_of(problem.launch, problem.arithmetic, problem.features, limits)
        on_problem(problem, len(listed))
        with torch.no_grad(), _precision(problem.dtype):
            result = _search(problem, device, listed, timer, on_candidate)
        entry = tuned_launches.Measured(
            result.key, asdict(result.launch), result.milliseconds, result.default_milliseconds
        )
        tuned_launches.save(identity, [entry], folder)
        choice.forget_measured()
        yield result


def _search(problem: Problem, device: torch.device, listed: list, timer: Timer, on_candidate) -> Result:
    call = problem.call(device)
    with choice.trying(problem.launch, None) as asked:
        call()
        if len(asked) != 1:
            raise RuntimeError(f"[tune] {problem}: the call asked for {len(asked)} launches of the kind, expected one")
        ((key, default),) = asked.items()
        times = {default: timer(call)}
    if key[1] != problem.arithmetic:
        raise ValueError(
            f"[tune] {problem}: products of this size are '{key[1]}' here, expected '{problem.arithmetic}'"
        )
    failures: Counter = Counter()
    for candidate in dict.fromkeys(listed):
        if candidate != default:
            with _counting_refusals(failures), choice.trying(problem.launch, candidate):
                times[candidate] = timer(call)
        on_candidate()
    fastest = _final(problem.launch, call, [default, *_right(problem, device, times, default, failures)], timer)
    winner = min(fastest, key=fastest.get)
    if fastest[winner] > (1 - _NOISE) * fastest[default]:
        winner = default
    return Result(
        problem, key, winner, default, fastest[winner], fastest[default], len(times), dict(sorted(failures.items()))
    )


@contextlib.contextmanager
def _counting_refusals(failures: Counter) -> Iterator[None]:
    """Counts, by reason, a candidate that asks too much; any other error ends the search."""
    try:
        yield
    except _REFUSALS as error:
        failures[type(error).__name__] += 1


def _right(problem: Problem, device: torch.device, times: dict, default: Any, failures: Counter) -> list:
    """The fastest candidates whose results are as exact as they must be. Slower ones are not looked at: each check
    compiles kernels of its own."""
    found: list = []
    for candidate in sorted((each for each in times if each != default), key=times.get):
        if len(found) == _FINALISTS:
            break
        with _counting_refusals(failures), choice.trying(problem.launch, candidate):
            if _is_right(problem, device):
                found.append(candidate)
            else:
                failures["wrong result"] += 1
    return found


def _final(name: str, call: Callable, finalists: list, timer: Timer) -> dict[Any, float]:
    """Times the finalists once more, in turns, so that a drift of the clock meets all alike."""
    rounds: dict[Any, list[float]] = {each: [] for each in finalists}
    for _ in range(_ROUNDS):
        for each, found in rounds.items():
            with choice.trying(name, each):
                found.append(timer(call))
    return {each: statistics.median(found) for each, found in rounds.items()}


@contextlib.contextmanager
def _precision(dtype: str) -> Iterator[None]:
    """torch's switch for TF32, as a problem of this dtype needs it."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _is_right(problem: Problem, device: torch.device) -> bool:
    """Whether all results, and the gradients that the launch computes, keep the tolerance rule."""
    dtype = DTYPES[problem.dtype]
    for case in problem.checks:
        truth, reference = _expected(case, problem.dtype, problem.differentiates, device)
        found = _run(case, case.inputs(dtype), dtype, "triton", problem.differentiates, device)
        for name, x in found.items():
            factor = GRADIENT if name.startswith("gradient") else FORWARD
            try:
                assert_as_exact(name, x, reference[name], truth[name], factor, dtype)
            except AssertionError:
                return False
    return True


@functools.lru_cache(maxsize=4)
def _expected(case, name: str, differentiates: bool, device: torch.device) -> tuple[dict, dict]:
    """(truth in float64, the reference in the dtype)"""
    dtype = DTYPES[name]
    inputs = case.inputs(dtype)
    wide = {name: x.double() if x is not None and x.is_floating_point() else x for name, x in inputs.items()}
    return tuple(_run(case, each, dtype, "reference", differentiates, device) for each in (wide, inputs))


def _run(
    case, inputs: dict, dtype: torch.dtype, backend: str, differentiates: bool, device: torch.device
) -> dict[str, Tensor]:
    """The outputs of a case by name and, where asked for, the gradients of what can be differentiated."""
    on_device = {name: x if x is None else x.to(device) for name, x in inputs.items()}
    if not differentiates:
        return case.run(on_device, backend)
    with torch.enable_grad():
        for name, x in on_device.items():
            if x is not None and x.is_floating_point() and name != "alibi_slopes":
                on_device[name] = x.detach().requires_grad_()
        outputs = case.run(on_device, backend)
        wanted = {name: x for name, x in on_device.items() if x is not None and x.requires_grad}
        generator = torch.Generator().manual_seed(1)
        given = [torch.randn(x.shape, generator=generator).to(dtype).to(x) for x in outputs.values()]
        grads = torch.autograd.grad(list(outputs.values()), list(wanted.values()), given)
    found = {name: x.detach() for name, x in outputs.items()}
    return found | {f"gradient of {name}": grad for name, grad in zip(wanted, grads, strict=True)}
