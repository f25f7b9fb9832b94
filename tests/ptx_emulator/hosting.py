"""What host code must do, as checks of any work that launches kernels: where it launches, and what graphs can hold."""

from collections.abc import Callable

import torch

from . import Emulator, emulated, stream

# Calls that neither wait for a device nor allocate: all that host code may make of the runtime.
ALLOWED = {"cudaDeviceGetAttribute", "cudaFuncSetAttribute", "cudaLaunchKernel"}
Tensors = dict[str, torch.Tensor]


def check_place(work: Callable[[], object], tensors: int, current: int) -> object:
    """work(), which must launch on torch's current stream of the tensors' device, with that device current, and leave
    the current device as it was. On torch's default streams, then on others."""
    emulator = Emulator()
    for streams in ((0, 0), (stream(0), stream(1))):
        emulator.calls()
        with emulator.place(tensors, current, streams):
            result = work()
            after = emulator.current_device
        calls = emulator.calls()
        assert any(call.kernel for call in calls), "nothing was launched"
        for call in calls:
            assert call.name in ALLOWED, f"{call.name} was called"
            assert call.device == tensors, f"{call.name} is for device {call.device} and the tensors are on {tensors}"
            assert not call.kernel or call.stream == streams[tensors], (
                f"a launch on stream {call.stream} and torch's current stream is {streams[tensors]}"
            )
        assert after == current, f"device {after} was left current instead of {current}"
    return result


def check_replay(run: Callable[[Tensors], Tensors], inputs: Tensors) -> None:
    """A graph of run(inputs), replayed on other contents of the same memory, gives bit by bit what a call gives for
    them."""
    emulator = Emulator()
    first = {name: x.clone() for name, x in run(inputs).items()}
    used = {x.data_ptr() for x in inputs.values()}
    with emulated.kept_memory(), emulator.place(streams=(stream(0), 0)):
        with emulator.capture(stream(0)):
            captured = run(inputs)
        for x in inputs.values():
            x.detach().copy_(_changed(x))
        emulator.counters()
        expected = run(inputs)
        launches = emulator.counters()
        emulator.replay()
        assert emulator.counters() == launches, "the graph does not launch what a call does"
        for name, x in expected.items():
            if x.data_ptr() in used:  # a gradient that is handed on
                continue
            assert x.isfinite().any() and not torch.equal(x, first[name]), f"{name} does not depend on the inputs"
            assert torch.equal(captured[name].nan_to_num(7.0), x.nan_to_num(7.0)), f"{name} differs in a replay"


def _changed(x: torch.Tensor) -> torch.Tensor:
    """Other contents for an input."""
    if x.dtype == torch.bool:
        return ~x
    return 0.7 * x + 0.1 if x.is_floating_point() else x + 1
