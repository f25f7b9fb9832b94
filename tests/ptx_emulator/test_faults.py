"""Planted faults, each of which must be found, at its line."""

import ctypes
from pathlib import Path

import pytest
import torch

from tests.ptx_emulator import Emulator, HazardError, building, planted
from tests.ptx_emulator.planted import STORE_BY_WARP, product
from tests.ptx_emulator.small_kernel import HEADER, launch

NEEDS_NVCC = pytest.mark.skipif(building.nvcc() is None, reason=building.NO_NVCC)


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
@pytest.mark.parametrize("fault", [fault for fault, (_, kinds) in planted.IN_CUDA.items() if kinds])
def test_faults_of_a_kernel(fault):
    found = planted.in_cuda(fault).hazards
    assert planted.IN_CUDA[fault][1] & {hazard.kind for hazard in found}, found
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
    error = planted.call_gemm("0", *(ctypes.c_void_p(a.data_ptr()) for _ in range(3)), m=8, n=8, k=8)
    assert b"bytes of shared memory; the device has 8192" in error or b"on a device with 8192" in error


def test_results_and_hazards_do_not_depend_on_threads():
    text = "mul.wide.u32 %d0, %lane, 8; add.u64 %d0, %in, %d0; ld.global.b32 %r5, [%d0];"
    x, found = torch.zeros(64)[:17], []  # what the lanes read behind x lies in memory of no other tensor
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


@pytest.mark.parametrize("name", planted.IN_PTX)
def test_faults_in_ptx(name):
    found = planted.in_ptx(name).hazards
    kind = next(kind for kind in planted.KINDS if name.startswith(kind))
    assert [hazard.kind for hazard in found] == [kind], found
    assert all(hazard.message and hazard.text for hazard in found)


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
    emulator = launch(planted.IN_PTX["misaligned"], torch.zeros(4), torch.zeros(4))
    with pytest.raises(HazardError, match=r"1 hazards\nmisaligned: test, PTX line \d+, block \(0, 0, 0\)"):
        emulator.check()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", planted.OF_BLOCKS)
def test_races_of_blocks(name, threads):
    Emulator().threads(threads)
    found = planted.of_blocks(name).hazards
    Emulator().threads(2)
    assert [hazard.kind for hazard in found] == ["race of blocks"] * planted.OF_BLOCKS[name][1]


@NEEDS_NVCC
def test_the_table_in_the_documents():
    """docs/gpu-verification.md shows what is found now, fault by fault."""
    page = (Path(__file__).parents[2] / "docs" / "gpu-verification.md").read_text()
    rows = list(planted.table())
    assert not any(row.endswith("| nothing |") for row in rows)
    assert "\n".join(rows) in page, "\n".join(rows)
