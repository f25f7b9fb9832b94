"""One case on the emulated CUDA kernels, measured: errors against float64, hazards, counters."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from bigmodel_kernels.testing.tolerance import max_error

from . import Hazard, emulated


@dataclass(frozen=True)
class Measured:
    """of: the output or gradient with the largest error in units of the reference's own. error, reference_error:
    largest absolute differences from the float64 truth, of the kernel and of the reference run in the case's dtype."""

    of: str
    error: float
    reference_error: float
    hazards: list[Hazard]
    counters: dict[str, dict]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _with_gradients(case, inputs: dict, dtype: torch.dtype, backend: str, backward: bool) -> dict[str, torch.Tensor]:
    """Outputs by name; with backward, gradients by name instead, of random gradients of the outputs."""
    if not backward:
        return case.run(inputs, backend)
    leaves = {
        name: x if x is None else x.detach().requires_grad_(x.is_floating_point() and name != "alibi_slopes")
        for name, x in inputs.items()
    }
    outputs = case.run(leaves, backend)
    generator = torch.Generator().manual_seed(1)
    given = [
        torch.randn(output.shape, generator=generator, dtype=torch.float64).to(dtype).to(output.dtype)
        for output in outputs.values()
    ]
    wanted = {name: x for name, x in leaves.items() if x is not None and x.requires_grad}
    grads = torch.autograd.grad(list(outputs.values()), list(wanted.values()), given)
    return {f"gradient of {name}": grad for name, grad in zip(wanted, grads, strict=True)}


def measure(case, dtype: torch.dtype, backward: bool = False, capability: tuple[int, int] = (8, 0)) -> Measured:
    """Runs a case of testing/cases.py on the emulator, which poses as a device of this compute capability."""
    with emulated.cuda_backend() as emulator:
        emulator.device(capability, *_DEVICES[capability])
        inputs = case.inputs(dtype)
        wide = {name: x.double() if x is not None and x.is_floating_point() else x for name, x in inputs.items()}
        truth = _with_gradients(case, wide, dtype, "reference", backward)
        reference = _with_gradients(case, inputs, dtype, "reference", backward)
        emulator.hazards(), emulator.counters()
        found = _with_gradients(case, inputs, dtype, "cuda", backward)
        hazards, counters = emulator.hazards(), emulator.counters()
    errors = {name: (max_error(found[name], truth[name]), max_error(reference[name], truth[name])) for name in truth}
    smallest = torch.finfo(torch.float32).tiny
    worst = max(errors, key=lambda name: errors[name][0] / max(errors[name][1], smallest))
    return Measured(worst, *errors[worst], hazards, counters)


# Multiprocessors and bytes of shared memory per block, of a T4, A100, RTX 3090, RTX 4090, H100 and RTX 5090.
_DEVICES = {
    (7, 5): (40, 64 << 10),
    (8, 0): (108, 163 << 10),
    (8, 6): (82, 99 << 10),
    (8, 9): (128, 99 << 10),
    (9, 0): (132, 227 << 10),
    (12, 0): (170, 99 << 10),
}
CAPABILITIES = tuple(_DEVICES)
