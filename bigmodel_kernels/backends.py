"""Which implementation runs an op: named by the user, or chosen by device and dtype.

A backend is any object with the ops as attributes: `torch.ops.bigmodel` ("cpu" and "cuda": the dispatcher picks by
device), `torch.ops.bigmodel_triton` ("triton"), or the module `reference`. A backend that was named never falls back:
what it cannot run raises with the reasons. Automatic choice takes the first of `AUTOMATIC_ORDER` that has no reason
against it, and of cuda and triton, where both can run, the one that gpu_choice.py says; `explain()` tells what was
chosen and why the others were not.
"""

import functools
import importlib.metadata
import importlib.util
import platform
import re
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from . import gpu_choice, ops, reference
from .interpreter import interpreted

BACKENDS = ("cpu", "cuda", "triton", "reference")
AUTOMATIC_ORDER = ("cuda", "triton", "cpu", "reference")
OPS = (
    "attention",
    "attention_weights",
    "attention_varlen",
    "attention_decode",
    "linear",
    "feed_forward",
    "add_norm",
    "rotary",
    "linear_cross_entropy",
)
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REFERENCE_DTYPES = (torch.float64, *KERNEL_DTYPES)

_GPU_BACKENDS = ("cuda", "triton")

# Meta tensors have no data; the ops' fakes, registered beside the CPU kernels, give their shapes.
_CPU_DEVICES = ("cpu", "meta")
CPU_OPS = torch.ops.bigmodel

# Empty until `_load_triton` has imported the kernels.
TRITON_OPS = torch.ops.bigmodel_triton
OLDEST_TRITON = (3, 6)
GPU_CAPABILITY = (7, 5)
GPU_BFLOAT16_CAPABILITY = (8, 0)


class _Forced(threading.local):
    """The backend that `use_backend` forces in this thread. torch.compile guards on the attribute (set in __init__, or
    it would not see it) and recompiles when it changes."""

    def __init__(self):
        self.name = None


forced = _Forced()


class use_backend:
    """Context manager: ops called inside, in this thread, run on the named backend unless a call names another.

    Args: `name` is "cpu", "cuda", "triton", "reference", or None for automatic choice.
    Raises: ValueError for any other name.
    """

    def __init__(self, name: str | None):
        if name is not None:
            _check_name("use_backend", name)
        self.name = name

    def __enter__(self) -> None:
        self.previous = forced.name
        forced.name = self.name

    def __exit__(self, *exception) -> None:
        forced.name = self.previous


def resolve(op: str, device: torch.device, dtype: torch.dtype, name: str | None = None, elements: int | None = None):
    """The object whose attribute `op` runs tensors of this device and dtype.

    Args: `name` a backend, or None for the one forced by `use_backend`, or else automatic choice; `elements` of the
    call's first tensor, if known.
    Raises: ValueError for an unknown name; RuntimeError, with every reason, if the named backend cannot run this.
    """
    name = forced.name if name is None else name
    if name is None:
        return _namespace(_automatic(op, device, dtype, elements))
    _check_name(op, name)
    reasons = _reasons(name, device, dtype)
    if reasons:
        raise RuntimeError(f"[{op}] the {name} backend cannot run this: {'; '.join(reasons)}")
    return _namespace(name)


def resolve_for(op: str, x: Tensor, name: str | None = None):
    """`resolve` by a call's first tensor; the common case first, without the cost of looking at x's device."""
    if name is None and forced.name is None and x.is_cpu and x.dtype in KERNEL_DTYPES:
        return CPU_OPS
    # A compiled graph must not be bound to one size by this.
    elements = None if torch.compiler.is_compiling() or not x.is_cuda else x.numel()
    return resolve(op, x.device, x.dtype, name, elements)


def unsupported_reasons(
    op: str, backend: str, tensors: tuple[Tensor, ...] = (), options: dict | None = None
) -> list[str]:
    """Why a backend cannot run an op on these tensors with these options: sentences, none if it can.

    Raises: ValueError for an unknown op or backend.
    """
    if op not in OPS:
        raise ValueError(f"[{op}] is not an op; expected one of {', '.join(OPS)}")
    _check_name(op, backend)
    # Every backend has every op with every option, so that devices and dtypes decide alone.
    del options
    if not tensors:
        return list(_backend_reasons(backend))
    reasons = []
    for tensor in tensors:
        reasons += [reason for reason in _reasons(backend, tensor.device, tensor.dtype) if reason not in reasons]
    return reasons


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: the op, the backend that runs it (None if none can), per backend why it cannot and, of the
    Triton kernels, whether their launches were measured on the device (`bigmodel tune`) or are the default ones."""

    op: str
    backend: str | None
    how: str
    reasons: dict[str, list[str]]
    launches: str = ""

    def __str__(self) -> str:
        lines = [f"{self.op} runs on: {self.backend or 'nothing'} ({self.how})"]
        lines += [f"  launches: {self.launches}"] if self.launches else []
        for name, reasons in self.reasons.items():
            if name != self.backend:
                lines.append(f"  {name}: {'; '.join(reasons) if reasons else 'can run this, not chosen'}")
        return "\n".join(lines)


def explain(op: str, *tensors: Tensor, **options) -> Explanation:
    """Which backend a call of `op` would run on, and why not on the others. Print it to read it.

    Args: `op` the function's name; `tensors` the leading tensor arguments of the call (the first decides); `options`
    its keyword arguments, `backend` included.
    Raises: ValueError for an unknown op or backend; TypeError without tensors.
    """
    if op not in OPS:
        raise ValueError(f"[explain] '{op}' is not an op; expected one of {', '.join(OPS)}")
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise TypeError(f"[explain] expected the tensors that {op} would be called with")
    named = options.pop("backend", None)
    named = forced.name if named is None else named
    first = tensors[:1]
    reasons = {name: unsupported_reasons(op, name, first, options) for name in BACKENDS}
    if named is None:
        device, dtype, elements = first[0].device, first[0].dtype, first[0].numel()
        chosen, how = _automatic(op, device, dtype, elements), "chosen automatically"
        if chosen in _GPU_BACKENDS and not any(reasons[name] for name in _GPU_BACKENDS):
            row = gpu_choice.choose(op, torch.cuda.get_device_capability(device), elements)
            how += f": {row.why}; {'measured' if row.measured else 'no device has measured this'}"
    else:
        _check_name("explain", named)
        chosen, how = None if reasons[named] else named, f"{named} was named, and never falls back"
    return Explanation(op, chosen, how, reasons, _launches(first[0].device) if chosen == "triton" else "")


def info() -> dict:
    """This machine and installation: versions, CPU targets, threads, and for each backend the reasons why it is not
    available (an empty list: it is), and for each CUDA device which launches the Triton kernels use there.
    """
    from . import _C

    devices = range(torch.cuda.device_count()) if not _backend_reasons("triton") else ()

    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cpu_target": _C.cpu_target(),
        "supported_cpu_targets": _C.supported_cpu_targets(),
        "build": _C.build_info(),
        "backends": {name: [*_backend_reasons(name)] for name in BACKENDS},
        "launches": {f"cuda:{index}": _launches(torch.device("cuda", index)) for index in devices},
    }


def _launches(device: torch.device) -> str:
    if device.type != "cuda":
        return "the interpreter's own, small ones"
    from . import tuned_launches

    return tuned_launches.describe(device)


def _check_name(op: str, name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"[{op}] backend is {name!r}; expected one of {', '.join(BACKENDS)}, or None")


def _automatic(op: str, device: torch.device, dtype: torch.dtype, elements: int | None = None) -> str:
    if device.type == "cuda" and not any(_reasons(name, device, dtype) for name in _GPU_BACKENDS):
        return gpu_choice.choose(op, torch.cuda.get_device_capability(device), elements).backend
    for name in AUTOMATIC_ORDER:
        # On CPU tensors Triton only interprets its kernels: a test of them, and never a choice.
        if not (name == "triton" and device.type == "cpu") and not _reasons(name, device, dtype):
            return name
    raise RuntimeError(f"[{op}] no backend runs dtype {dtype}: {'; '.join(_reasons('reference', device, dtype))}")


def _constant_in_graphs(function):
    """torch.compiler.assume_constant_result: what the function returns is decided when a call is traced, no compiler
    need follow how. Torch's own imports all of its compiler, a second of everybody's first call, to set this attribute;
    tests/test_backends.py holds it to that."""
    function._dynamo_marked_constant = True
    return function


@_constant_in_graphs
def _backend_reasons(name: str) -> tuple[str, ...]:
    """Why a backend is not available at all."""
    if name == "cuda":
        return _cuda_reasons()
    return _load_triton() if name == "triton" else ()


def _cuda_reasons() -> tuple[str, ...]:
    from . import _C

    built = () if _C.has_cuda() else ("this build has no CUDA kernels: build it with BIGMODEL_CUDA=ON",)
    return *built, *(() if torch.cuda.is_available() else ("torch sees no CUDA device",))


@_constant_in_graphs
def _gpu_reasons(backend: str, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """Why a GPU backend cannot run tensors of this device and dtype."""
    if backend == "triton" and device.type == "cpu" and interpreted():
        return ()
    if device.type != "cuda" or not torch.cuda.is_available():
        takes_cpu = backend == "triton" and device.type == "cpu"
        hint = ", and CPU tensors where TRITON_INTERPRET=1 was set before the start" if takes_cpu else ""
        return (f"the tensors are on {device}; the {backend} backend reads cuda tensors{hint}",)
    capability = torch.cuda.get_device_capability(device)
    name = f"compute capability {capability[0]}.{capability[1]}"
    if capability < GPU_CAPABILITY:
        return (f"{device} has {name}; the {backend} backend needs {GPU_CAPABILITY[0]}.{GPU_CAPABILITY[1]}",)
    if dtype == torch.bfloat16 and capability < GPU_BFLOAT16_CAPABILITY:
        return (f"the dtype is torch.bfloat16, which {device} with {name} cannot multiply; float16 and float32 run",)
    if backend == "cuda" and not _compiled_for(capability):
        architectures = _cuda_architectures()
        return (f"{device} has {name}, and this build's CUDA kernels are for {architectures}: set BIGMODEL_CUDA_ARCHS",)
    return ()


def _cuda_architectures() -> str:
    from . import _C

    return _C.build_info()["cuda_architectures"]


def _compiled_for(capability: tuple[int, int]) -> bool:
    """Whether this build has machine code for a device, or PTX that its driver can compile."""
    for architecture in _cuda_architectures().split(";"):
        number, _, kind = architecture.partition("-")
        major, minor = divmod(int(number), 10)
        same_family = major == capability[0] and minor <= capability[1]
        if same_family if kind == "real" else (major, minor) <= capability:
            return True
    return False


def _triton_version() -> str:
    """Of whichever distribution brings the package: triton, pytorch-triton, ..."""
    for distribution in importlib.metadata.packages_distributions().get("triton", ()):
        return importlib.metadata.version(distribution)
    return ""


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


@functools.cache
def _load_triton() -> tuple[str, ...]:
    """Registers the Triton kernels with their fakes and gradients if they can run here, or says why they cannot."""
    reasons = []
    if importlib.util.find_spec("triton") is None:
        reasons.append("the package triton is not installed")
    elif (version := _triton_version()) and _release(version) < OLDEST_TRITON:
        needed = ".".join(map(str, OLDEST_TRITON))
        reasons.append(f"triton is {version}; the oldest that the kernels are compiled with is {needed}")
    if not torch.cuda.is_available() and not interpreted():
        reasons.append("torch sees no CUDA device, and TRITON_INTERPRET is not set to run kernels in numpy")
    if not reasons:
        try:
            from . import triton, tuned_launches
            from .triton import choice
        except ImportError as error:  # a triton too old, or broken: no reason to fail where another backend can run
            return (f"the package triton cannot be used: {error}",)
        ops.register(triton.NAMESPACE)
        choice.use_measured(tuned_launches.launches_on)
    return tuple(reasons)


def _reasons(name: str, device: torch.device, dtype: torch.dtype) -> list[str]:
    reasons = list(_backend_reasons(name))
    if reasons:
        return reasons
    if name == "reference":
        if dtype not in REFERENCE_DTYPES:
            reasons.append(f"the dtype is {dtype}; the reference computes float64, float32, bfloat16 and float16")
        return reasons
    if name in _GPU_BACKENDS:
        reasons += _gpu_reasons(name, device, dtype)
    elif name == "cpu" and device.type not in _CPU_DEVICES:
        reasons.append(f"the tensors are on {device}; the cpu backend reads cpu tensors")
    if dtype not in KERNEL_DTYPES:
        reasons.append(f"the dtype is {dtype}; the {name} backend computes float32, bfloat16 and float16")
    return reasons


def _namespace(name: str):
    if name == "reference":
        return reference
    return TRITON_OPS if name == "triton" else CPU_OPS
