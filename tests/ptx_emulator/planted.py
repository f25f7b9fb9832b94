"""Faults planted in kernels, and what the emulator says of each: the tests assert it, and `python -m tests.ptx_emulator
faults` prints it as the table of docs/gpu-verification.md."""

import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from . import Emulator, Hazard, building, emulated, hosting
from .small_kernel import HEADER, launch

KERNELS = Path(__file__).parent / "kernels"
GEMM, HOST = KERNELS / "gemm.cu", KERNELS / "host.cu"
CSRC = building.ROOT / "csrc"

# Faults of a CUDA kernel, kernels/gemm.cu: what is planted, and kinds of hazards of which at least one must be found;
# none where the fault shows in the result or the counters alone.
IN_CUDA = {
    "NO_BARRIER": ("no barrier between the copies' arrival and their use", {"race"}),
    "NO_SECOND_BARRIER": ("no barrier before a stage is filled again", {"race"}),
    "NO_WAIT": ("no cp.async.wait_group", {"cp.async"}),
    "ADDRESS_OFF_BY_ONE": ("copies begin one element late", {"misaligned"}),
    "ROW_TOO_MANY": ("one row more than the matrix has is read", {"out of bounds"}),
    "DIVERGENT_BARRIER": ("one lane skips a barrier", {"divergent barrier", "divergent exchange"}),
    "WRONG_SWIZZLE": ("reads swizzle by another bit than copies do", set()),
    "NO_SWIZZLE": ("rows of shared memory are not swizzled", set()),
}

STORE_BY_WARP = """
    mov.u32 %r5, dynamic;
    and.b32 %r6, %lane, 31;
    mad.lo.u32 %r6, %r6, 4, %r5;
    shr.u32 %r7, %lane, 5;
    setp.eq.u32 %p1, %r7, 0;
"""
# Faults in PTX; a name begins with the kind of hazard that must be found, and no other.
IN_PTX = {
    # Warp 1 reads what warp 0 wrote.
    "race": STORE_BY_WARP + "@%p1 st.shared.b32 [%r6], %lane; @!%p1 ld.shared.b32 %r8, [%r6];",
    # Warp 0 reads, warp 1 overwrites.
    "race after read": STORE_BY_WARP + "st.shared.b32 [%r6], 1; bar.sync 0;"
    " @%p1 ld.shared.b32 %r8, [%r6]; @!%p1 st.shared.b32 [%r6], 2;",
    "race of writes": STORE_BY_WARP + "st.shared.b32 [%r6], %r7;",
    # A barrier of other warps orders nothing here.
    "race past a barrier of others": STORE_BY_WARP + "@%p1 st.shared.b32 [%r6], 1; bar.sync 1, 64; bar.arrive 2, 64;"
    " @%p1 st.shared.b32 [%r6], 2; @!%p1 ld.shared.b32 %r8, [%r6];",
    "race of an atomic with a read": STORE_BY_WARP + "st.shared.b32 [%r6], 1; bar.sync 0;"
    " @%p1 red.shared.add.u32 [%r6], 1; @!%p1 ld.shared.b32 %r8, [%r6];",
    "uninitialised": "ld.shared.b32 %r5, [dynamic];",
    "uninitialised part": "st.shared.b16 [dynamic], 1; ld.shared.b32 %r5, [dynamic];",
    "out of bounds of shared": "st.shared.b32 [dynamic+1024], 1;",
    "out of bounds below shared": "mov.u32 %r5, dynamic; sub.u32 %r5, %r5, 4; ld.shared.b32 %r6, [%r5];",
    "out of bounds of global": "ld.global.b32 %r5, [%in+16];",
    "out of bounds by a part": "ld.global.v2.b32 {%r5, %r6}, [%in+8]; ld.global.v4.b32 {%r5, %r6, %r7, %r8}, [%in+8];",
    "out of bounds of null": "ld.global.b32 %r5, [0];",
    "out of bounds of parameters": "mov.b64 %d0, in; ld.param.b64 %d1, [%d0+16];",
    "misaligned": "ld.global.b32 %r5, [%in+2];",
    "misaligned vector": "ld.global.v2.b32 {%r5, %r6}, [%in+4];",
    "misaligned shared": "st.shared.b32 [dynamic+2], 1;",
    "cp.async not waited for": "cp.async.ca.shared.global [dynamic], [%in], 4; cp.async.commit_group;"
    " ld.shared.b32 %r5, [dynamic];",
    "cp.async not committed": "cp.async.ca.shared.global [dynamic], [%in], 4; cp.async.wait_group 0;"
    " ld.shared.b32 %r5, [dynamic];",
    "cp.async overwritten": "cp.async.ca.shared.global [dynamic], [%in], 4; st.shared.b32 [dynamic], 1;",
    # Waited for by the warp that copied, and read by another without a barrier.
    "race with a cp.async": STORE_BY_WARP + "@%p1 cp.async.ca.shared.global [%r6], [%in], 4; cp.async.wait_all;"
    " @!%p1 ld.shared.b32 %r8, [%r6];",
    "divergent barrier": "setp.lt.u32 %p1, %lane, 5; @%p1 bar.sync 0;",
    "divergent barrier of branches": "setp.lt.u32 %p1, %lane, 5; @%p1 bra $a; bar.sync 0; bra $b; $a: bar.sync 0; $b:",
    "divergent barrier of warps": STORE_BY_WARP + "@%p1 bra $a; bar.sync 0; bra $b; $a: bar.sync 0; $b:",
    "divergent exchange": "setp.lt.u32 %p1, %lane, 5; @%p1 shfl.sync.bfly.b32 %r5, %lane, 1, 31, 0xffffffff;",
    "divergent exchange with a missing lane": "setp.lt.u32 %p1, %lane, 5;"
    " @%p1 shfl.sync.idx.b32 %r5, %lane, 9, 31, 31;",
    "barrier that never fills": "bar.sync 1, 96;",
    "barrier of half a warp": "bar.sync 1, 48;",
    "endless": "$a: bra $a;",
    "trap": "trap;",
}
KINDS = ("race", "uninitialised", "out of bounds", "misaligned", "cp.async", "divergent barrier", "divergent exchange",
         "barrier", "endless", "trap")  # fmt: skip


# Faults of host code, kernels/host.cu, in the order of its enum; and calls of the runtime that no host code may make.
IN_HOST = {
    "default_stream": "a launch on stream 0",
    "no_guard": "the tensors' device is not made current",
    "guard_left": "the device that was current is not restored",
    "value_of_input": "an element of the input is read on the host and becomes an argument of the kernel",
}
CALLS = {
    "cudaDeviceSynchronize": "waits",
    "cudaStreamSynchronize": "waits",
    "cudaEventSynchronize": "waits",
    "cudaMemcpy": "waits",
    "cudaMalloc": "allocates past torch",
    "cudaFree": "frees past torch",
    "cudaMallocAsync": "allocates past torch",
    "cuCtxSynchronize": "waits, by the driver",
}


@dataclass(frozen=True)
class Finding:
    fault: str
    error: float  # of the result, where there is one
    hazards: list[Hazard]
    conflicts: float  # passes through shared memory by ldmatrix over those without bank conflicts


@functools.cache
def _gemm(fault: str):
    library = ctypes.CDLL(str(building.cuda_library(GEMM, defines=(f"FAULT={fault}",))))
    library.launch_gemm.restype = ctypes.c_char_p
    return library.launch_gemm


def call_gemm(fault: str, *pointers: ctypes.c_void_p, m: int, n: int, k: int) -> bytes | None:
    """c [m, n] = a [m, k] b [n, k]^T by the kernel with this fault ("0": none); the error's text, if there is one."""
    return _gemm(fault)(*pointers, m, n, k)


def product(fault: str, m: int = 97, n: int = 133, k: int = 200) -> tuple[Emulator, float]:
    """The emulator after a @ b.T by the kernel with this fault, and the largest error of the product."""
    emulator = Emulator()
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, k, generator=generator).bfloat16() for size in (m, n))
    c = torch.empty(m, n)
    with emulator.buffers(a=a, b=b), emulator.buffers(initialised=False, c=c):
        error = call_gemm(fault, *(ctypes.c_void_p(x.data_ptr()) for x in (a, b, c)), m=m, n=n, k=k)
    assert error is None, error
    return emulator, (c - a.float() @ b.float().T).abs().max().item()


def in_cuda(fault: str) -> Finding:
    emulator, error = product(fault)
    (counters,) = emulator.counters().values()
    ldmatrix = counters["classes"].get("ldmatrix", {"wavefronts": 0, "ideal_wavefronts": 0})
    ideal = ldmatrix["ideal_wavefronts"]  # none where the fault ended the kernel before
    conflicts = ldmatrix["wavefronts"] / ideal if ideal else 1.0
    return Finding(fault, error, emulator.hazards(), conflicts)


def in_ptx(name: str) -> Finding:
    emulator = Emulator()
    emulator.step_limit(1000)
    try:
        threads = 64 if STORE_BY_WARP in IN_PTX[name] else 32
        launch(IN_PTX[name], torch.zeros(4), torch.zeros(4), threads, shared_bytes=1024)
    finally:
        emulator.step_limit(200_000_000)
    return Finding(name, 0.0, emulator.hazards(), 1.0)


# What two blocks do with the same memory, and whether that is a race.
OF_BLOCKS = {
    "both write": ("st.global.b32 [%in], %r5;", True),
    "one reads what the other writes": ("@%p1 st.global.b32 [%in], 1; @!%p1 ld.global.b32 %r6, [%in];", True),
    "both read": ("ld.global.b32 %r6, [%in]; st.global.b32 [%d0], %r6;", False),
    "halves of a word": ("mul.wide.u32 %d1, %r5, 2; add.u64 %d1, %out, %d1; st.global.b16 [%d1], 1;", False),
    "each reads its own again": ("st.global.b32 [%d0], 1; ld.global.b32 %r6, [%d0];", False),
    "atomics": ("red.global.add.u32 [%in], 1;", False),
}


def of_blocks(name: str) -> Finding:
    body = f"""
    mov.u32 %r5, %ctaid.x;
    setp.eq.u32 %p1, %r5, 1;
    mul.wide.u32 %d0, %r5, 4;
    add.u64 %d0, %out, %d0;
    {OF_BLOCKS[name][0]}
    ret; }}"""
    emulator, x, y = Emulator(), torch.zeros(4), torch.zeros(4)
    with emulator.buffers(x=x, y=y):
        emulator.launch_ptx(HEADER + body, "test", (2,), (1,), [x, y])
        emulator.launch_ptx(HEADER + body, "test", (1,), (1,), [x, y])  # another launch comes after the first
    return Finding(name, 0.0, emulator.hazards(), 1.0)


@functools.cache
def _host():
    library = ctypes.CDLL(str(building.cuda_library(HOST, include=(CSRC, CSRC / "include"))))
    library.launch_scale.restype = ctypes.c_char_p
    return library.launch_scale


def scale(tensors: hosting.Tensors, fault: str | None = None) -> hosting.Tensors:
    """y = x * x[0], by host code with this fault. Raises: RuntimeError as our ops do."""
    x, number = tensors["x"], 0 if fault is None else 1 + list(IN_HOST).index(fault)
    y = torch.empty_like(x)
    error = _host()(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), x.numel(), number)
    if error is not None:
        raise RuntimeError(error.decode())
    return {"y": y}


def in_host(fault: str | None) -> list[str]:
    """What the checks of host code say of this fault."""
    found = []
    with emulated.cuda_backend():  # tensors are the device's memory
        for check in (
            lambda: hosting.check_place(lambda: scale({"x": torch.arange(1.0, 9.0)}, fault), tensors=1, current=0),
            lambda: hosting.check_replay(lambda tensors: scale(tensors, fault), {"x": torch.arange(1.0, 9.0)}),
        ):
            try:
                check()
            except (AssertionError, RuntimeError) as error:
                found.append(str(error).splitlines()[0])
    return found


def in_calls(name: str) -> str:
    """What is said of host code that calls this function of CUDA."""
    source = building.BUILD / "calls" / f"{name}.cpp"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(f'extern "C" int {name}(); extern "C" int call() {{ return {name}(); }}\n')
    try:
        building.cuda_library(source)
    except RuntimeError as error:
        return str(error).partition(" calls ")[2]
    return "nothing"


def table() -> Iterator[str]:
    """Markdown: each fault and what was found of it, without addresses and counts."""
    yield "| planted in | fault | found |"
    yield "| --- | --- | --- |"
    for fault, (what, _) in IN_CUDA.items():
        yield f"| kernels/gemm.cu, {fault} | {what} | {_found(in_cuda(fault))} |"
    for name in IN_PTX:
        yield f"| PTX | {name} | {_found(in_ptx(name))} |"
    for name, (_, races) in OF_BLOCKS.items():
        if races:
            yield f"| PTX, two blocks | {name} | {_found(of_blocks(name))} |"
    for fault, what in IN_HOST.items():
        yield f"| kernels/host.cu, {fault} | {what} | {'; '.join(in_host(fault)) or 'nothing'} |"
    for name, what in CALLS.items():
        yield f"| a library of host code | it calls what {what} | {in_calls(name)} |"


def _found(finding: Finding) -> str:
    if finding.hazards:
        places = dict.fromkeys(
            f"{each.kind}" + (f" ({each.source})" if each.source else "") for each in finding.hazards
        )
        return "; ".join(places)
    if finding.error > 1:
        return "a wrong result, no hazard"
    return f"{finding.conflicts:g} times the passes of ldmatrix, no hazard" if finding.conflicts > 1 else "nothing"
