"""Runs a case: every contender's time, error against float64 and peak extra memory, in one row."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

import bigmodel_kernels as bmk

from .calls import largest_error, own_copy, run_once
from .case import Case, Function, Inputs
from .device import Device, Processor
from .harness import Timing, measure, rotations


@dataclass
class Result:
    """What one contender achieved; `failure` says why where it did not."""

    timing: Timing | None = None
    error: float | None = None
    peak_extra_bytes: int | None = None
    failure: str | None = None

    def fail(self, error: Exception) -> None:
        first_line = (str(error).strip().splitlines() or [""])[0]
        self.failure = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
        self.timing = None


@dataclass
class Row:
    """A case and its contenders' results, "ours" first. threads: None where the record's number holds for all."""

    op: str
    shape: str
    dtype: str
    pass_name: str
    flops: int
    bytes: int
    rotations: int
    results: dict[str, Result] = field(default_factory=dict)
    threads: int | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.op, self.shape, self.dtype, self.pass_name)

    def to_json(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_json(fields: dict) -> "Row":
        results = {
            name: Result(**{**result, "timing": Timing(**result["timing"]) if result["timing"] else None})
            for name, result in fields["results"].items()
        }
        return Row(**{**fields, "results": results})


def run_cases(
    cases: Iterable[Case], budget_s: float, seed: int = 0, on_row: Callable[[Row], None] = lambda row: None
) -> list[Row]:
    """Runs the cases one after the other; `on_row` sees each row as it is finished."""
    rows = []
    for case in cases:
        rows.append(run_case(case, budget_s, seed))
        on_row(rows[-1])
    return rows


def run_case(case: Case, budget_s: float, seed: int = 0, device: Device | None = None) -> Row:
    """Measures error and memory of each contender in one call each, then times them all against each other. device:
    the processor by default."""
    device = device or Processor()
    inputs = _to_device(case.make_inputs(torch.Generator().manual_seed(seed)), device)
    copies = rotations_of(inputs, device)
    row = Row(case.op, case.shape, case.dtype, case.pass_name, case.flops, case.bytes, copies)
    truth = run_once(case.truth, float64(cropped(case, inputs)), case.differentiable)
    calls = {}
    for name, function in _contenders(case, device).items():
        row.results[name] = result = Result()
        try:
            calls[name] = _rotating_call(case, function, inputs, copies)
            outputs: list[dict[str, Tensor]] = []
            result.peak_extra_bytes = device.peak_extra_bytes(
                lambda call=calls[name], kept=outputs: kept.append(call(0))
            )
            result.error = largest_error(cropped(case, outputs.pop()), truth)
        except Exception as error:  # stays in the table, with its error
            calls.pop(name, None)
            result.fail(error)
    for name, timing in measure(calls, budget_s, device.sample_ns).items():
        if isinstance(timing, Exception):
            row.results[name].fail(timing)
        else:
            row.results[name].timing = timing
    return row


def _contenders(case: Case, device: Device) -> dict[str, Function]:
    """Those of the case, ours on the device's backend, and ours on each other backend that it has."""
    ours = case.contenders["ours"]
    others = {f"ours ({name})": _with_backend(ours, name) for name in device.others}
    return {**case.contenders, "ours": _with_backend(ours, device.backend), **others}


def _with_backend(function: Function, backend: str | None) -> Function:
    """The function, with no choice left to it where a backend is named."""
    if backend is None:
        return function

    def named(inputs: Inputs) -> Tensor | tuple[Tensor, ...]:
        with bmk.use_backend(backend):
            return function(inputs)

    return named


def _to_device(inputs: Inputs, device: Device) -> Inputs:
    return {name: None if tensor is None else tensor.to(device.name) for name, tensor in inputs.items()}


def rotating_calls(case: Case, generator: torch.Generator) -> dict[str, Callable[[int], dict[str, Tensor]]]:
    """By contender: turn -> a call on that turn's inputs, its outputs and gradients by name."""
    inputs = case.make_inputs(generator)
    return {
        name: _rotating_call(case, function, inputs, rotations_of(inputs, Processor()))
        for name, function in case.contenders.items()
    }


def _rotating_call(case: Case, function: Function, inputs: Inputs, copies: int) -> Callable[[int], dict[str, Tensor]]:
    """No two contenders share a tensor: one that rearranged its weights would spoil the other's."""
    sets = [own_copy(inputs) for _ in range(copies)]
    return lambda turn: run_once(function, sets[turn % copies], case.differentiable)


def rotations_of(inputs: Inputs, device: Device) -> int:
    """How many copies of these inputs a contender rotates on this device."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in inputs.values() if tensor is not None)
    return rotations(size, device.cache_bytes)


def cropped(case: Case, tensors: Inputs) -> Inputs:
    """The part on which truth is computed."""
    return {name: None if tensor is None else case.crop(name, tensor) for name, tensor in tensors.items()}


def float64(inputs: Inputs) -> Inputs:
    """The same values, floating-point ones in float64."""
    return {
        name: tensor.double() if tensor is not None and tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }
