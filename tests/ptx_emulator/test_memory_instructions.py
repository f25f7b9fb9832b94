"""Memory, control flow and barriers, each by a small kernel whose result is known."""

import pytest
import torch

from tests.ptx_emulator.small_kernel import launch

LANE = torch.arange(32)


@pytest.mark.parametrize("space", ["global", "shared", "local", "generic", "generic shared", "generic local"])
@pytest.mark.parametrize("vector, type", [("", "b8"), ("", "b16"), ("", "b32"), ("", "b64"), ("v2", "b8"), ("v4", "b8"),
    ("v2", "b16"), ("v4", "b16"), ("v2", "b32"), ("v4", "b32"), ("v2", "b64")])  # fmt: skip
def test_ld_st(space, vector, type):
    """Bytes go out to the space and come back."""
    bits, count = int(type[1:]), int(vector[1:] or 1)
    whole = bits // 8 * count
    register = {8: "%h", 16: "%h", 32: "%r", 64: "%d"}[bits]
    names = [f"{register}{i + 3}" for i in range(count)]
    value = "{" + ", ".join(names) + "}" if vector else names[0]
    form = f"{vector}.{type}" if vector else type
    home = {"global": "%in", "shared": "dynamic", "local": "stack"}.get(space.split()[-1], "%in")
    window = f"cvta.{space.split()[1]}.u64 %d2, %d2;" if " " in space else ""
    prefix = "" if space.startswith("generic") else f".{space}"
    body = f"""
    .local .align 16 .b8 stack[1024];
    mov.u64 %d2, {home};
    {window}
    mad.wide.u32 %d2, %lane, {whole}, %d2;
    mad.wide.u32 %d0, %lane, {whole}, %in;
    mad.wide.u32 %d1, %lane, {whole}, %out;
    ld.global.{form} {value}, [%d0];
    st{prefix}.{form} [%d2], {value};
    {"".join(f"mov.b{max(bits, 16)} {name}, 0; " for name in names)}
    ld{prefix}.{form} {value}, [%d2];
    st.global.{form} [%d1], {value};"""
    given = torch.randint(0, 256, (32 * whole,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = torch.zeros_like(given)
    launch(body, given, found, shared_bytes=1024).check()
    assert torch.equal(given, found)


@pytest.mark.parametrize("type, register, right", [
    ("u8", "%r", 0xF0), ("s8", "%r", 0xFFFFFFF0), ("u16", "%r", 0xE1F0), ("s16", "%r", 0xFFFFE1F0),
    ("u8", "%d", 0xF0), ("s8", "%d", 0xFFFFFFFFFFFFFFF0), ("s32", "%d", 0xFFFFFFFFC3D2E1F0), ("u32", "%d", 0xC3D2E1F0),
])  # fmt: skip
def test_narrow_loads_are_extended(type, register, right):
    bits = 32 if register == "%r" else 64
    body = f"ld.global.{type} {register}5, [%in]; st.global.b{bits} [%out], {register}5;"
    found = torch.zeros(1, dtype=torch.int64)
    launch(body, torch.tensor([0xC3D2E1F0]), found, threads=1).check()
    assert found.item() % 2**bits == right


def test_narrow_stores_take_the_low_bytes():
    body = "ld.global.b32 %r5, [%in]; st.global.b8 [%out], %r5; st.global.u16 [%out+2], %r5;"
    found = torch.zeros(4, dtype=torch.uint8)
    launch(body, torch.tensor([0x44332211]), found, threads=1).check()
    assert found.tolist() == [0x11, 0, 0x11, 0x22]


def test_parameters_and_hints():
    """A parameter through a generic address; cache hints change nothing."""
    body = """
    mov.b64 %d3, in;
    cvta.param.u64 %d3, %d3;
    ld.u64 %d4, [%d3];
    ld.global.nc.L1::no_allocate.L2::128B.b32 %r5, [%d4];
    ld.volatile.global.b32 %r6, [%d4+4];
    ld.relaxed.gpu.global.b32 %r7, [%d4+8];
    st.global.cs.v2.b32 [%out], {%r5, %r6};
    st.release.gpu.global.b32 [%out+8], %r7;
    isspacep.param %p1, %d3;
    selp.b32 %r8, 1, 0, %p1;
    st.global.b32 [%out+12], %r8;"""
    found = torch.zeros(4, dtype=torch.int32)
    launch(body, torch.tensor([5, 6, 7], dtype=torch.int32), found, threads=1).check()
    assert found.tolist() == [5, 6, 7, 1]


ATOMICS = [
    ("add.u32", 10, 3, 13), ("add.s32", 10, -3, 7), ("min.s32", 10, -3, -3), ("min.u32", 10, -3, 10),
    ("max.s32", 10, -3, 10), ("max.u32", 10, -3, -3), ("and.b32", 12, 10, 8), ("or.b32", 12, 10, 14),
    ("xor.b32", 12, 10, 6), ("inc.u32", 3, 3, 0), ("inc.u32", 2, 3, 3), ("dec.u32", 0, 3, 3), ("dec.u32", 2, 3, 1),
    ("dec.u32", 9, 3, 3), ("exch.b32", 1, 2, 2),
]  # fmt: skip


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("opcode, old, operand, new", ATOMICS)
def test_atom(space, opcode, old, operand, new):
    home = "mov.u64 %d3, dynamic;" if space == "shared" else "mov.u64 %d3, %out;"
    body = f"""
    {home}
    ld.global.v2.b32 {{%r5, %r6}}, [%in];
    st.{space}.b32 [%d3], %r5;
    atom.relaxed.{space}.gpu.{opcode} %r7, [%d3], %r6;
    ld.{space}.b32 %r8, [%d3];
    st.global.v2.b32 [%out], {{%r7, %r8}};"""
    found = torch.zeros(2, dtype=torch.int32)
    launch(body, torch.tensor([old, operand], dtype=torch.int32), found, threads=1, shared_bytes=16).check()
    assert found.tolist() == [old, new]


def test_atom_cas():
    body = """
    ld.global.b32 %r5, [%in];
    st.global.b32 [%out], %r5;
    atom.global.cas.b32 %r6, [%out], 1, 7;
    atom.global.cas.b32 %r7, [%out], %r5, 8;
    st.global.v2.b32 [%out+8], {%r6, %r7};"""
    found = torch.zeros(4, dtype=torch.int32)
    launch(body, torch.tensor([5], dtype=torch.int32), found, threads=1).check()
    assert found.tolist() == [8, 0, 5, 5]


@pytest.mark.parametrize("type, dtype", [
    ("f32", torch.float32), ("f64", torch.float64), ("noftz.f16", torch.float16), ("noftz.bf16", torch.bfloat16),
    ("noftz.f16x2", torch.float16), ("noftz.bf16x2", torch.bfloat16), ("u64", torch.int64),
])  # fmt: skip
def test_red_adds_every_lane(type, dtype):
    bits = {"f32": 32, "f64": 64, "u64": 64}.get(type, 32 if type.endswith("x2") else 16)
    register = {16: "%h", 32: "%r", 64: "%d"}[bits]
    body = f"ld.global.b{bits} {register}5, [%in]; red.global.gpu.add.{type} [%out], {register}5;"
    found = torch.zeros(2, dtype=dtype)
    launch(body, torch.tensor([3, 2]).to(dtype), found).check()
    assert found.tolist() == [96, 64 if type.endswith("x2") else 0]


COPY = """
    mov.u32 %r5, dynamic;
    mad.lo.u32 %r6, %lane, 16, %r5;
    mad.wide.u32 %d0, %lane, 16, %in;
    mad.wide.u32 %d1, %lane, 16, %out;
    {copy}
    ld.shared.v4.b32 {{%r10, %r11, %r12, %r13}}, [%r6];
    st.global.v4.b32 [%d1], {{%r10, %r11, %r12, %r13}};"""
COPIES = [
    ("cp.async.cg.shared.global [%r6], [%d0], 16;", 16),
    ("cp.async.cg.shared.global.L2::128B [%r6], [%d0], 16, 16;", 16),
    ("cp.async.cg.shared.global [%r6], [%d0], 16, 6;", 6),
    ("cp.async.cg.shared.global [%r6], [0], 16, 0;", 0),
    ("setp.eq.u32 %p1, %lane, %lane; cp.async.cg.shared.global [%r6], [0], 16, %p1;", 0),
    ("cp.async.ca.shared.global [%r6], [%d0], 8; cp.async.ca.shared.global [%r6+8], [%d0+8], 4, 2;"
     " cp.async.ca.shared::cta.global [%r6+12], [%d0+12], 4;", None),
]  # fmt: skip


@pytest.mark.parametrize("wait", ["cp.async.commit_group; cp.async.wait_group 0;", "cp.async.wait_all;"])
@pytest.mark.parametrize("copy, read", COPIES)
def test_cp_async(copy, read, wait):
    given = torch.randint(1, 256, (32, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = torch.zeros_like(given)
    launch(COPY.format(copy=copy + wait), given, found, shared_bytes=512).check()
    right = given.clone()
    if read is None:
        right[:, 10:12] = 0
    else:
        right[:, read:] = 0
    assert torch.equal(found, right)


def test_wait_group_leaves_the_latest():
    """Of three groups the first two have arrived; to read the third is an error."""
    copy = "".join(f"cp.async.cg.shared.global [%r6+{512 * i}], [%d0], 16; cp.async.commit_group;" for i in range(3))
    given = torch.arange(128, dtype=torch.int32)
    for read, arrived in ((0, True), (512, True), (1024, False)):
        found = torch.zeros_like(given)
        body = COPY.format(copy=copy + "cp.async.wait_group 1;").replace("[%r6];\n", f"[%r6+{read}];\n")
        emulator = launch(body, given, found, shared_bytes=1536)
        kinds = [hazard.kind for hazard in emulator.hazards()]
        assert kinds == ([] if arrived else ["cp.async"])
        assert torch.equal(found, given) == arrived


def test_lanes_rejoin_after_a_loop():
    """Each lane loops as often as its number; a shuffle of all lanes follows."""
    body = """
    mov.u32 %r5, 0;
    mov.u32 %r6, 0;
    $loop:
    setp.ge.u32 %p1, %r6, %lane;
    @%p1 bra $end;
    add.u32 %r5, %r5, %r6;
    add.u32 %r6, %r6, 1;
    bra.uni $loop;
    $end:
    shfl.sync.bfly.b32 %r7, %r5, 31, 31, 0xffffffff;
    mad.wide.u32 %d1, %lane, 4, %out;
    st.global.b32 [%d1], %r7;"""
    found = torch.zeros(32, dtype=torch.int32)
    emulator = launch(body, torch.zeros(1), found)
    emulator.check()
    assert found.tolist() == [lane * (lane - 1) // 2 for lane in reversed(range(32))]
    assert emulator.counters()["test"]["classes"]["shuffle"]["issued"] == 1


def test_branches_by_table():
    body = """
    rem.u32 %r5, %lane, 3;
    mov.u32 %r6, 0;
    targets: .branchtargets $a, $b, $c;
    brx.idx %r5, targets;
    $a: add.u32 %r6, %r6, 1;
    bra $end;
    $b: add.u32 %r6, %r6, 10;
    $c: add.u32 %r6, %r6, 100;
    $end:
    mad.wide.u32 %d1, %lane, 4, %out;
    st.global.b32 [%d1], %r6;"""
    found = torch.zeros(32, dtype=torch.int32)
    launch(body, torch.zeros(1), found).check()
    assert found.tolist() == [(1, 110, 100)[lane % 3] for lane in range(32)]


def test_scopes_hide_registers_and_labels():
    body = """
    mov.u32 %r5, 1;
    { .reg .b32 %r5; mov.u32 %r5, 2; $again: add.u32 %r5, %r5, 1; setp.lt.u32 %p1, %r5, 9; @%p1 bra $again; }
    { .reg .b32 t; mov.u32 t, 40; $again: add.u32 t, t, 1; setp.lt.u32 %p1, t, 50; @%p1 bra $again; mov.u32 %r6, t; }
    st.global.v2.b32 [%out], {%r5, %r6};"""
    found = torch.zeros(2, dtype=torch.int32)
    launch(body, torch.zeros(1), found, threads=1).check()
    assert found.tolist() == [1, 50]


@pytest.mark.parametrize("leave", ["ret", "exit"])
def test_predicates_guard(leave):
    """Lanes whose guard fails change nothing, and may leave first."""
    body = f"""
    mad.wide.u32 %d1, %lane, 4, %out;
    setp.lt.u32 %p1, %lane, 5;
    mov.u32 %r5, 7;
    @!%p1 mov.u32 %r5, 8;
    @%p1 {leave};
    st.global.b32 [%d1], %r5;"""
    found = torch.zeros(32, dtype=torch.int32)
    launch(body, torch.zeros(1), found).check()
    assert found.tolist() == [0] * 5 + [8] * 27


def test_barrier_orders_warps():
    """Each thread reads what its mirror image in another warp wrote."""
    body = """
    mov.u32 %r5, dynamic;
    mad.lo.u32 %r6, %lane, 4, %r5;
    st.shared.b32 [%r6], %lane;
    bar.sync 0;
    xor.b32 %r7, %lane, 127;
    mad.lo.u32 %r6, %r7, 4, %r5;
    ld.shared.b32 %r8, [%r6];
    mad.wide.u32 %d1, %lane, 4, %out;
    st.global.b32 [%d1], %r8;"""
    found = torch.zeros(128, dtype=torch.int32)
    launch(body, torch.zeros(1), found, threads=128, shared_bytes=512).check()
    assert found.tolist() == list(reversed(range(128)))


@pytest.mark.parametrize("operation, right", [("popc.u32", 50), ("and.pred", 0), ("or.pred", 1)])
def test_barrier_reduces(operation, right):
    destination = "%r7" if operation == "popc.u32" else "%p2"
    select = "" if destination == "%r7" else "selp.b32 %r7, 1, 0, %p2;"
    body = f"""
    setp.lt.u32 %p1, %lane, 50;
    bar.red.{operation} {destination}, 0, %p1;
    {select}
    mad.wide.u32 %d1, %lane, 4, %out;
    st.global.b32 [%d1], %r7;"""
    found = torch.zeros(128, dtype=torch.int32)
    launch(body, torch.zeros(1), found, threads=128).check()
    assert set(found.tolist()) == {right}


def test_named_barriers_hand_over():
    """Warp 0 fills, warps 1 and 2 read after barrier 1, which warp 0 only arrives at. Warp 3 takes no part."""
    body = """
    mov.u32 %r5, dynamic;
    shr.u32 %r6, %lane, 5;
    and.b32 %r7, %lane, 31;
    mad.lo.u32 %r8, %r7, 4, %r5;
    mov.u32 %r9, 0;
    setp.eq.u32 %p1, %r6, 3;
    @%p1 bra $store;
    setp.eq.u32 %p1, %r6, 0;
    @!%p1 bra $reader;
    st.shared.b32 [%r8], %r7;
    bar.arrive 1, 96;
    bra $store;
    $reader:
    bar.sync 1, 96;
    ld.shared.b32 %r9, [%r8];
    $store:
    mad.wide.u32 %d1, %lane, 4, %out;
    st.global.b32 [%d1], %r9;"""
    found = torch.zeros(128, dtype=torch.int32)
    launch(body, torch.zeros(1), found, threads=128, shared_bytes=128).check()
    assert found.view(4, 32).tolist() == [[0] * 32, list(range(32)), list(range(32)), [0] * 32]


def test_bar_warp_sync_and_fences():
    """Lanes meet again at bar.warp.sync."""
    body = """
    mov.u32 %r5, 1;
    setp.lt.u32 %p1, %lane, 16;
    @%p1 bra $low;
    mov.u32 %r5, 2;
    $low:
    bar.warp.sync 0xffffffff;
    membar.gl;
    fence.acq_rel.gpu;
    prefetch.global.L2 [%in];
    mad.wide.u32 %d1, %lane, 4, %out;
    st.global.b32 [%d1], %r5;"""
    found = torch.zeros(32, dtype=torch.int32)
    launch(body, torch.zeros(1), found).check()
    assert found.tolist() == [1] * 16 + [2] * 16


def test_variables_of_the_module():
    from tests.ptx_emulator import Emulator

    text = """
    .version 8.8
    .target sm_80
    .address_size 64
    .global .align 4 .b32 table[4] = {1, 2, 0x3, -4};
    .const .align 8 .b8 bytes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    .visible .entry read(.param .u64 out) .reqntid 1
    {
    .shared .align 4 .b32 word;
    .reg .b64 %d<4>;
    .reg .b32 %r<4>;
    ld.param.u64 %d0, [out];
    ld.global.b32 %r0, [table+12];
    ld.const.u16 %r1, [bytes+2];
    st.shared.b32 [word], %r0;
    ld.shared.b32 %r2, [word];
    st.global.b32 [%d0], %r1;
    st.global.b32 [%d0+4], %r2;
    }"""
    found = torch.zeros(2, dtype=torch.int32)
    emulator = Emulator()
    with emulator.buffers(found=found):
        emulator.launch_ptx(text, "read", (1,), (1,), [found])
        emulator.check()
        assert found.tolist() == [0x0403, -4]
        with pytest.raises(RuntimeError, match="reqntid"):
            emulator.launch_ptx(text, "read", (1,), (2,), [found])


def test_shared_variables_are_those_that_a_kernel_mentions():
    """Both kernels of a module see its shared variables, and neither gets the other's memory."""
    from tests.ptx_emulator import Emulator

    kernel = """
    .visible .entry {name}() {{
    .reg .b32 %r;
    mov.u32 %r, {array};
    st.shared.b32 [%r], 1;
    st.shared.b32 [%r+{offset}], 1;
    ret; }}"""
    header = ".version 8.8\n.target sm_80\n.address_size 64\n"
    header += ".shared .align 4 .b8 small[8]; .shared .align 4 .b8 large[100000];\n"
    emulator = Emulator()
    emulator.device(shared_bytes=64 << 10)
    for offset, hazards in ((4, []), (8, ["out of bounds"])):
        text = header + kernel.format(name="one", array="small", offset=offset)
        text += kernel.format(name="other", array="large", offset=offset)
        emulator.launch_ptx(text, "one", (1,), (1,), [])
        assert [hazard.kind for hazard in emulator.hazards()] == hazards
        with pytest.raises(RuntimeError, match="100000 bytes of shared memory; the device has 65536"):
            emulator.launch_ptx(text, "other", (1,), (1,), [])


@pytest.mark.parametrize("instruction, what", [
    ("wgmma.fence.sync.aligned;", "wgmma.fence.sync.aligned: it is not known"),
    ("add.rn.foo.f32 %f1, %f2, %f3;", "add.rn.foo.f32: it has a modifier that is not known"),
    ("mul.s32 %r1, %r2, %r3;", "mul.s32: expected lo, hi or wide"),
    ("add.s64 %r1, %r2, %r3;", "add.s64: register %r1 is not of 8 bytes"),
    ("add.s32 %r1, %r2;", "add.s32: expected 3 operands, not 2"),
    ("bra $nowhere;", r"bra: label \$nowhere is not there"),
    ("mov.u32 %r1, %clock;", "special register %clock is not known"),
    ("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d0}, {%d1}, {%d2}, {%d3};", "not a product that is known"),
    ("call foo;", "call: it is not known"),
])  # fmt: skip
def test_what_is_not_known_is_named(instruction, what):
    with pytest.raises(RuntimeError, match=what):
        launch(instruction, torch.zeros(1), torch.zeros(1))
