"""Executes PTX on the CPU, and says what a kernel does wrong.

    emulator = Emulator()
    emulator.buffer(x, "x"), emulator.buffer(y, "y", initialised=False)
    emulator.launch_ptx(text, "kernel", grid=(4,), block=(128,), shared_bytes=0, arguments=[x, y, 1000])
    emulator.check()                 # raises HazardError if anything was found
    emulator.counters()["kernel"]["classes"]["mma"]["issued"]

CUDA sources are compiled with `building.cuda_library`, and their host functions called by ctypes or through a module:
they launch on the emulator, which stands in for the CUDA runtime.
"""

import contextlib
import ctypes
import functools
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from . import building

__all__ = ["Emulator", "Hazard", "HazardError", "HostCall", "stream"]

Size = Sequence[int]


@dataclass(frozen=True)
class Hazard:
    """Something that a kernel did wrong: the first time at this line of PTX, and how often.

    source: file:line of the CUDA or Triton source, where the PTX names it.
    """

    kind: str
    kernel: str
    line: int
    text: str
    source: str
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    message: str
    count: int

    def __str__(self) -> str:
        where = f"PTX line {self.line}" + (f" ({self.source})" if self.source else "")
        return (
            f"{self.kind}: {self.kernel}, {where}, block {self.block}, thread {self.thread}: {self.message}"
            f" [{self.text}]" + (f", {self.count} times" if self.count > 1 else "")
        )


@dataclass(frozen=True)
class HostCall:
    """A call of the CUDA runtime by host code: the device that it concerns, and for a launch its kernel and stream."""

    name: str
    kernel: str
    device: int
    stream: int


class HazardError(AssertionError):
    """A kernel did something wrong; the message lists everything found."""


@functools.cache
def library() -> ctypes.CDLL:
    """The emulator, loaded before and visible to any library of CUDA host code."""
    loaded = ctypes.CDLL(str(building.built("ptx_emulator")), mode=ctypes.RTLD_GLOBAL)
    for name in ("launch", "kernels", "take_hazards", "take_counters", "take_calls", "replay", "registered_text"):
        getattr(loaded, f"ptx_emulator_{name}").restype = ctypes.c_char_p
    return loaded


def _raise_if(error: bytes | None) -> None:
    if error is not None:
        raise RuntimeError(error.decode())


def _sizes(values: Size) -> ctypes.Array:
    return (ctypes.c_uint32 * 3)(*values, *[1] * (3 - len(values)))


class Emulator:
    """The device. There is one per process: what this returns shares its buffers, hazards and counters."""

    def __init__(self):
        self._library = library()

    # Memory ----------------------------------------------------------------------------------------------------------
    def buffer(
        self, tensor: torch.Tensor, name: str, initialised: bool = True, read_only: bool = False
    ) -> torch.Tensor:
        """Lets kernels touch a CPU tensor's elements, from its first to its last. initialised=False: its contents count
        as garbage until a kernel writes them."""
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        size = tensor.element_size() * (extent if tensor.numel() else 0)
        self._library.ptx_emulator_add_buffer(
            ctypes.c_uint64(tensor.data_ptr()), ctypes.c_uint64(size), name.encode(), initialised, read_only
        )
        return tensor

    @contextlib.contextmanager
    def buffers(self, initialised: bool = True, **tensors: torch.Tensor) -> Iterator[None]:
        """Buffers by name, forgotten at the end."""
        for name, tensor in tensors.items():
            self.buffer(tensor, name, initialised)
        try:
            yield
        finally:
            self.forget(*tensors.values())

    def forget(self, *tensors: torch.Tensor) -> None:
        """Forgets these buffers, or all."""
        for tensor in tensors:
            self._library.ptx_emulator_remove_buffer(ctypes.c_uint64(tensor.data_ptr()))
        if not tensors:
            self._library.ptx_emulator_clear_buffers()

    # Launches --------------------------------------------------------------------------------------------------------
    def kernels(self, text: str) -> dict[str, list[int]]:
        """Kernels of a PTX text, with the bytes of their parameters."""
        result = ctypes.c_char_p()
        _raise_if(self._library.ptx_emulator_kernels(text.encode(), ctypes.byref(result)))
        listed = [each.split(":") for each in result.value.decode().split(";") if each]
        return {name: [int(size) for size in sizes.split(",") if size] for name, sizes in listed}

    def launch_ptx(
        self, text: str, kernel: str, grid: Size, block: Size, arguments: Sequence, shared_bytes: int = 0
    ) -> None:
        """Runs one kernel. arguments: a tensor (its address), int, float, bool or bytes for each parameter."""
        sizes = self.kernels(text)[kernel]
        if len(sizes) != len(arguments):
            raise ValueError(f"[ptx_emulator] {kernel} has {len(sizes)} parameters, not {len(arguments)}")
        packed = [_packed(argument, size) for argument, size in zip(arguments, sizes, strict=True)]
        holders = [ctypes.create_string_buffer(each, max(len(each), 1)) for each in packed]
        pointers = (ctypes.c_void_p * len(holders))(*map(ctypes.addressof, holders))
        _raise_if(
            self._library.ptx_emulator_launch(
                text.encode(), kernel.encode(), _sizes(grid), _sizes(block), ctypes.c_uint32(shared_bytes), pointers
            )
        )

    # What came of it -------------------------------------------------------------------------------------------------
    def hazards(self) -> list[Hazard]:
        """What was found since the last call."""
        found = json.loads(self._library.ptx_emulator_take_hazards())
        return [Hazard(**{**each, "block": tuple(each["block"]), "thread": tuple(each["thread"])}) for each in found]

    def check(self) -> None:
        """Raises HazardError if anything was found since the last look."""
        found = self.hazards()
        if found:
            raise HazardError(f"{len(found)} hazards\n" + "\n".join(map(str, found)))

    def counters(self, lines: bool = False) -> dict[str, dict]:
        """Counts since the last call, by kernel: launches, blocks, threads and dynamic shared_bytes of a block of the
        last launch, and for each class of instructions how often warps issued it, in how many lanes, wavefronts of
        shared memory and ideal ones, sectors and bytes of global memory.
        lines: the same by line of PTX."""
        return json.loads(self._library.ptx_emulator_take_counters(lines))

    def calls(self) -> list[HostCall]:
        """What host code called since the last call, in order."""
        return [HostCall(**each) for each in json.loads(self._library.ptx_emulator_take_calls())]

    def registered_ptx(self) -> str:
        """The PTX of every library of CUDA host code that was loaded, text after text."""
        return self._library.ptx_emulator_registered_text().decode()

    # The device ------------------------------------------------------------------------------------------------------
    def device(
        self,
        capability: tuple[int, int] = (8, 0),
        multiprocessors: int = 108,
        shared_bytes: int = 163 << 10,
        l2_bytes: int = 40 << 20,
    ) -> None:
        """What host code is told that it runs on. shared_bytes: what a block can ask for."""
        self._library.ptx_emulator_set_device(*capability, multiprocessors, shared_bytes, l2_bytes)

    @property
    def current_device(self) -> int:
        """Of the two devices."""
        return self._library.ptx_emulator_current_device()

    @contextlib.contextmanager
    def place(self, tensors: int = 0, current: int = 0, streams: Sequence[int] = (0, 0)) -> Iterator[None]:
        """Inside, all tensors are on device `tensors`, `current` is the current device, and torch's current stream of
        each device is that of `streams`: `stream(device)`, or 0, the default one."""
        self._place(tensors, current, streams)
        try:
            yield
        finally:
            self._place(0, 0, (0, 0))

    def _place(self, tensors: int, current: int, streams: Sequence[int]) -> None:
        self._library.ptx_emulator_set_device_of_tensors(tensors)
        self._library.ptx_emulator_set_current_device(current)
        for device, each in enumerate(streams):
            self._library.ptx_emulator_set_torch_stream(device, ctypes.c_uint64(each))

    # Graphs ----------------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def capture(self, stream: int) -> Iterator[None]:
        """Inside, launches on this stream do not run: `replay` does them, with the arguments that they were given and
        what memory then holds. One on another stream is refused."""
        self._library.ptx_emulator_begin_capture(ctypes.c_uint64(stream))
        try:
            yield
        finally:
            self._library.ptx_emulator_end_capture()

    def replay(self) -> None:
        """What the last capture kept, in order."""
        _raise_if(self._library.ptx_emulator_replay())

    # How it runs -----------------------------------------------------------------------------------------------------
    def threads(self, count: int) -> None:
        """How many blocks run at once. Results and hazards are the same with any number."""
        self._library.ptx_emulator_set_threads(count)

    def step_limit(self, steps: int) -> None:
        """Instructions of one warp between two barriers, after which a loop counts as endless."""
        self._library.ptx_emulator_set_step_limit(ctypes.c_uint64(steps))


def stream(device: int, number: int = 1) -> int:
    """A stream of a device that is not its default one."""
    return 256 * (device + 1) + number


def _packed(argument, size: int) -> bytes:
    if isinstance(argument, torch.Tensor):
        argument = argument.data_ptr()
    if argument is None:
        argument = 0
    if isinstance(argument, float):
        return struct.pack("<f" if size == 4 else "<d", argument)
    if isinstance(argument, int):
        return argument.to_bytes(size, "little", signed=argument < 0)
    if len(argument) != size:
        raise ValueError(f"[ptx_emulator] an argument of {len(argument)} bytes for a parameter of {size}")
    return bytes(argument)
