"""Planted faults, each of which must be found, at its line."""

import ctypes
import functools
from pathlib import Path

import pytest
import torch

from tests.ptx_emulator import Emulator, HazardError, building
from tests.ptx_emulator.small_kernel import HEADER, launch

GEMM = Path(__file__).parent / "kernels" / "gemm.cu"
NEEDS_NVCC = pytest.mark.skipif(building.nvcc() is None, reason=building.NO_NVCC)


@functools.cache
def gemm(fault: str):
    library = ctypes.CDLL(str(building.cuda_library(GEMM, defines=(f"FAULT={fault}",))))
    library.launch_gemm.restype = ctypes.c_char_p
    return library.launch_gemm


def product(fault: str, m: int = 97, n: int = 133, k: int = 200) -> tuple[Emulator, float]:
    """The emulator after a @ b.T by the kernel with this fault, and the largest error of the product."""
    emulator = Emulator()
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, k, generator=generator).bfloat16() for size in (m, n))
    c = torch.empty(m, n)
    with emulator.buffers(a=a, b=b), emulator.buffers(initialised=False, c=c):
        error = gemm(fault)(*(ctypes.c_void_p(x.data_ptr()) for x in (a, b, c)), m, n, k)
    assert error is None, error
    return emulator, (c - a.float() @ b.float().T).abs().max().item()


@NEEDS_NVCC
def test_the_kernel_without_faults():
    emulator, error = product("0")
    emulator.check()
    assert error < 1e-4
    (counters,) = emulator.counters().values()
    classes = counters["classes"]
    assert counters["launches"] == 1 and counters["blocks"] == 6
    steps, warps = 7, 4  # of 32 terms, in 6 blocks of 4 warps; each warp 16 x 64 x 32 by 16 products
    assert classes["mma"]["issued"] == 6 * warps * steps * 16
    assert classes["ldmatrix"]["issued"] == 6 * warps * steps * 10
    assert classes["ldmatrix"]["wavefronts"] == classes["ldmatrix"]["ideal_wavefronts"] == 6 * warps * steps * 10 * 4
    assert classes["store_global"]["lanes"] == 97 * 133 and classes["store_global"]["bytes"] == 4 * 97 * 133
    assert classes["cp_async"]["bytes"] == 2 * 200 * (97 * 3 + 133 * 2)


@NEEDS_NVCC
@pytest.mark.parametrize("fault, kinds", [
    ("NO_BARRIER", {"race"}),
    ("NO_SECOND_BARRIER", {"race"}),
    ("NO_WAIT", {"cp.async"}),
    ("ADDRESS_OFF_BY_ONE", {"misaligned"}),
    ("ROW_TOO_MANY", {"out of bounds"}),
    ("DIVERGENT_BARRIER", {"divergent barrier", "divergent exchange"}),
])  # fmt: skip
def test_faults_of_a_kernel(fault, kinds):
    emulator, _ = product(fault)
    found = emulator.hazards()
    assert kinds & {hazard.kind for hazard in found}, found
    for hazard in found:
        assert hazard.line > 0 and hazard.text and hazard.source.startswith("gemm.cu:"), hazard


@NEEDS_NVCC
def test_a_wrong_swizzle_is_a_wrong_result():
    emulator, error = product("WRONG_SWIZZLE")
    emulator.check()
    assert error > 1


@NEEDS_NVCC
def test_no_swizzle_is_bank_conflicts():
    """Rows of 64 bytes: eight of them begin in two different banks, so that each matrix takes four passes."""
    emulator, error = product("NO_SWIZZLE")
    emulator.check()
    assert error < 1e-4
    (counters,) = emulator.counters().values()
    assert counters["classes"]["ldmatrix"]["wavefronts"] == 4 * counters["classes"]["ldmatrix"]["ideal_wavefronts"]


@NEEDS_NVCC
def test_host_code_is_held_to_the_device():
    """A launch that asks for more shared memory than the device has is refused, in words."""
    emulator = Emulator()
    emulator.device(capability=(8, 9), shared_bytes=8 << 10)
    a = torch.zeros(8, 8, dtype=torch.bfloat16)
    error = gemm("0")(*(ctypes.c_void_p(a.data_ptr()) for _ in range(3)), 8, 8, 8)
    assert b"bytes of shared memory; the device has 8192" in error or b"on a device with 8192" in error


def test_results_and_hazards_do_not_depend_on_threads():
    text = "mul.wide.u32 %d0, %lane, 8; add.u64 %d0, %in, %d0; ld.global.b32 %r5, [%d0];"
    x, found = torch.zeros(17), []
    for threads in (1, 2, 2):
        emulator = Emulator()
        emulator.threads(threads)
        with emulator.buffers(x=x):
            emulator.launch_ptx(HEADER + text + "ret; }", "test", (50,), (32,), [x, x])
        found.append(emulator.hazards())
    emulator.threads(2)
    assert found[0] == found[1] == found[2]
    (hazard,) = found[0]
    assert (hazard.block, hazard.thread, hazard.count) == ((0, 0, 0), (9, 0, 0), 50 * 23)
    assert hazard.message.endswith("4 bytes behind the end of x (68 bytes)")


STORE_BY_WARP = """
    mov.u32 %r5, dynamic;
    and.b32 %r6, %lane, 31;
    mad.lo.u32 %r6, %r6, 4, %r5;
    shr.u32 %r7, %lane, 5;
    setp.eq.u32 %p1, %r7, 0;
"""
FAULTS = {
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


@pytest.mark.parametrize("name", FAULTS)
def test_faults_in_ptx(name):
    emulator = Emulator()
    emulator.step_limit(1000)
    try:
        threads = 64 if STORE_BY_WARP in FAULTS[name] else 32
        launch(FAULTS[name], torch.zeros(4), torch.zeros(4), threads, shared_bytes=1024)
    finally:
        emulator.step_limit(200_000_000)
    found = emulator.hazards()
    kind = next(kind for kind in KINDS if name.startswith(kind))
    assert [hazard.kind for hazard in found] == [kind], found
    assert all(hazard.message and hazard.text for hazard in found)


KINDS = ("race", "uninitialised", "out of bounds", "misaligned", "cp.async", "divergent barrier", "divergent exchange",
         "barrier", "endless", "trap")  # fmt: skip

HARMLESS = {
    "a read of one's own": STORE_BY_WARP + "@%p1 st.shared.b32 [%r6], 1; @%p1 ld.shared.b32 %r8, [%r6];",
    "reads by both": STORE_BY_WARP + "@%p1 st.shared.b32 [%r6], 1; bar.sync 0; ld.shared.b32 %r8, [%r6];",
    "the same value by both": STORE_BY_WARP + "st.shared.b32 [%r6], 7;",
    "halves of a word": STORE_BY_WARP + "mad.lo.u32 %r6, %r7, 2, %r6; mov.b16 %h1, 7; st.shared.b16 [%r6], %h1;",
    "a handover": STORE_BY_WARP + "@%p1 st.shared.b32 [%r6], 1; bar.sync 1, 64; @!%p1 ld.shared.b32 %r8, [%r6];",
    "atomics by both": STORE_BY_WARP + "@%p1 st.shared.b32 [%r6], 1; bar.sync 0; red.shared.add.u32 [%r6], 1;",
    "a cp.async and a barrier": STORE_BY_WARP + "@%p1 cp.async.ca.shared.global [%r6], [%in], 4; cp.async.wait_all;"
    " bar.sync 0; @!%p1 ld.shared.b32 %r8, [%r6];",
    "a warp that left": STORE_BY_WARP + "@%p1 ret; bar.sync 0;",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_no_fault(name):
    launch(HARMLESS[name], torch.zeros(4), torch.zeros(4), threads=64, shared_bytes=1024).check()


def test_buffers_without_contents_and_read_only():
    emulator = Emulator()
    x = torch.zeros(4)
    for name, options in (("uninitialised", {"initialised": False}), ("read-only", {"read_only": True})):
        emulator.buffer(x, "x", **options)
        text = "ld.global.b32 %r5, [%in]; st.global.b32 [%out], %r5; ld.global.b32 %r5, [%in];"
        emulator.launch_ptx(HEADER + text + "ret; }", "test", (1,), (1,), [x, x])
        emulator.forget(x)
        (hazard,) = emulator.hazards()
        assert (hazard.kind, hazard.count) == (name, 1) and " x" in hazard.message


def test_check_raises_with_all_that_was_found():
    emulator = launch(FAULTS["misaligned"], torch.zeros(4), torch.zeros(4))
    with pytest.raises(HazardError, match=r"1 hazards\nmisaligned: test, PTX line \d+, block \(0, 0, 0\)"):
        emulator.check()


BLOCKS = {
    "both write": ("st.global.b32 [%in], %r5;", True),
    "one reads what the other writes": ("@%p1 st.global.b32 [%in], 1; @!%p1 ld.global.b32 %r6, [%in];", True),
    "both read": ("ld.global.b32 %r6, [%in]; st.global.b32 [%d0], %r6;", False),
    "halves of a word": ("mul.wide.u32 %d1, %r5, 2; add.u64 %d1, %out, %d1; st.global.b16 [%d1], 1;", False),
    "each reads its own again": ("st.global.b32 [%d0], 1; ld.global.b32 %r6, [%d0];", False),
    "atomics": ("red.global.add.u32 [%in], 1;", False),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", BLOCKS)
def test_races_of_blocks(name, threads):
    body, races = BLOCKS[name]
    body = f"""
    mov.u32 %r5, %ctaid.x;
    setp.eq.u32 %p1, %r5, 1;
    mul.wide.u32 %d0, %r5, 4;
    add.u64 %d0, %out, %d0;
    {body}
    ret; }}"""
    emulator, x, y = Emulator(), torch.zeros(4), torch.zeros(4)
    emulator.threads(threads)
    with emulator.buffers(x=x, y=y):
        emulator.launch_ptx(HEADER + body, "test", (2,), (1,), [x, y])
        emulator.launch_ptx(HEADER + body, "test", (1,), (1,), [x, y])  # another launch comes after the first
    emulator.threads(2)
    assert [hazard.kind for hazard in emulator.hazards()] == ["race of blocks"] * races
