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
    them. run may write to its inputs."""
    emulator = Emulator()
    first = {name: x.clone() for name, x in run(inputs).items()}
    with emulated.kept_memory(), emulator.place(streams=(stream(0), 0)):
        with emulator.capture(stream(0)):
            captured = run(inputs)
        others = {name: _changed(name, x.detach()) for name, x in inputs.items()}
        _fill(inputs, others)
        emulator.counters()
        expected = {name: x.clone() for name, x in run(inputs).items()}
        launches = emulator.counters()
        _fill(inputs, others)
        emulator.replay()
        assert emulator.counters() == launches, "the graph does not launch what a call does"
        for name, x in expected.items():
            assert x.isfinite().any() and not torch.equal(x, first[name]), f"{name} does not depend on the inputs"
            assert torch.equal(captured[name].nan_to_num(7.0), x.nan_to_num(7.0)), f"{name} differs in a replay"


def _fill(tensors: Tensors, contents: Tensors) -> None:
    for name, x in tensors.items():
        x.detach().copy_(contents[name])


def _changed(name: str, x: torch.Tensor) -> torch.Tensor:
    """Other contents for an input, as valid as its own."""
    if x.is_floating_point():
        return 0.7 * x + 0.1
    if x.dtype == torch.bool:
        return ~x
    if name == "dropout_seed":
        return x + 1
    if name == "block_table":  # another page is another sequence's, or empty
        return x.clone()
    if name.startswith("cu_seqlens"):  # the sequences in reverse order
        return x[-1] - x.flip(0)
    return torch.where(x > 0, x - 1, x)  # numbers of places, lengths and a cache's integers; below 0 is none
