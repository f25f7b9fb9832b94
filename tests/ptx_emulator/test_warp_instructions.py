"""Instructions in which the lanes of a warp work together, against the PTX manual's definitions element by element."""

import pytest
import torch

from tests.ptx_emulator.one_instruction import run
from tests.ptx_emulator.small_kernel import launch

ALL = 0xFFFFFFFF
LANES = range(32)


# The manual's loop over lanes, with b the lane operand and c the clamp and segment mask.
def shuffled(mode: str, lane: int, b: int, c: int) -> tuple[int, int]:
    b, clamp, segment = b & 31, c & 31, c >> 8 & 31
    most = (lane & segment) | (clamp & ~segment & 31)
    least = lane & segment
    source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": least | (b & ~segment & 31)}[mode]
    valid = source >= most if mode == "up" else source <= most
    return (source if valid else lane), int(valid)


@pytest.mark.parametrize("mode, b, c", [
    ("up", 1, 0), ("up", 3, 0x1800), ("down", 1, 31), ("down", 5, 0x181F), ("bfly", 16, 31), ("bfly", 3, 0x1C1F),
    ("bfly", 1, 31), ("idx", 0, 31), ("idx", 5, 31), ("idx", 3, 0x1C1F), ("idx", 31, 15),
])  # fmt: skip
def test_shfl(mode, b, c):
    values = [(1000 + 7 * lane, b, c) for lane in LANES]
    found = run(f"shfl.sync.{mode}.b32 {{0}}|{{1}}, {{2}}, {{3}}, {{4}}, 0xffffffff;", "rp", "rrr", values)
    for lane in LANES:
        source, valid = shuffled(mode, lane, b, c)
        assert found[lane] == (1000 + 7 * source, valid), lane


def test_shfl_without_predicate():
    found = run("shfl.sync.bfly.b32 {0}, {1}, 1, 31, -1;", "r", "r", [(lane,) for lane in LANES])
    assert [x for (x,) in found] == [lane ^ 1 for lane in LANES]


@pytest.mark.parametrize("bits", [0, 1, 0x80000001, ALL])
def test_vote(bits):
    given = [(bits >> lane & 1,) for lane in LANES]

    def vote(mode):
        return {x for (x,) in run(f"vote.sync.{mode} {{0}}, {{1}}, 0xffffffff;", "p", "p", given)}

    assert vote("all.pred") == {int(bits == ALL)}
    assert vote("any.pred") == {int(bits != 0)}
    assert vote("uni.pred") == {int(bits in (0, ALL))}
    ballot = run("vote.sync.ballot.b32 {0}, {1}, 0xffffffff;", "r", "p", given)
    assert {x for (x,) in ballot} == {bits}
    negated = run("vote.sync.ballot.b32 {0}, !{1}, 0xffffffff;", "r", "p", given)
    assert {x for (x,) in negated} == {bits ^ ALL}


def test_activemask():
    found = run("activemask.b32 {0};", "r", "r", [(0,)] * 5)
    assert {x for (x,) in found} == {0b11111}


@pytest.mark.parametrize("opcode, right", [
    ("add.s32", 31 * 32 // 2 - 32), ("add.u32", 31 * 32 // 2 - 32), ("min.s32", ALL), ("min.u32", 0),
    ("max.s32", 30), ("max.u32", ALL), ("and.b32", 0), ("or.b32", ALL), ("xor.b32", ALL ^ 31),
])  # fmt: skip
def test_redux(opcode, right):
    found = run(f"redux.sync.{opcode} {{0}}, {{1}}, 0xffffffff;", "r", "r", [((lane - 1) % 2**32,) for lane in LANES])
    assert {x for (x,) in found} == {right}


def test_match():
    given = [(lane % 3,) for lane in LANES]
    found = run("match.any.sync.b32 {0}, {1}, 0xffffffff;", "r", "r", given)
    for lane in LANES:
        assert found[lane] == (sum(1 << other for other in LANES if other % 3 == lane % 3),)
    assert set(run("match.all.sync.b32 {0}|{1}, {2}, 0xffffffff;", "rp", "r", given)) == {(0, 0)}
    assert set(run("match.all.sync.b32 {0}|{1}, {2}, 0xffffffff;", "rp", "r", [(5,)] * 32)) == {(ALL, 1)}
    assert set(run("match.all.sync.b64 {0}|{1}, {2}, 0xffffffff;", "rp", "d", [(1 << 60,)] * 32)) == {(ALL, 1)}


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count, trans):
    """Row r of matrix m lies at 16 (8 m + r); thread 4 g + t gets elements 2 t and 2 t + 1 of row g, or of column g."""
    given = torch.arange(256, dtype=torch.int16)
    found = torch.zeros(32, count, 2, dtype=torch.int16)
    registers = ", ".join(f"%r{i}" for i in range(count))
    stores = "\n".join(f"st.global.b32 [%d1 + {4 * i}], %r{i};" for i in range(count))
    body = f"""
    shl.b32 %r40, %lane, 4;
    mov.u32 %r41, dynamic;
    add.u32 %r41, %r41, %r40;
    mad.wide.u32 %d0, %lane, 16, %in;
    ld.global.v4.b32 {{%r50, %r51, %r52, %r53}}, [%d0];
    st.shared.v4.b32 [%r41], {{%r50, %r51, %r52, %r53}};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x{count}{".trans" if trans else ""}.shared.b16 {{{registers}}}, [%r41];
    mad.wide.u32 %d1, %lane, {4 * count}, %out;
    {stores}"""
    launch(body, given, found, shared_bytes=512).check()
    matrices = given.view(4, 8, 8)
    for lane in LANES:
        g, t = lane // 4, lane % 4
        for m in range(count):
            for i in range(2):
                right = matrices[m, 2 * t + i, g] if trans else matrices[m, g, 2 * t + i]
                assert found[lane, m, i] == right, (lane, m, i)


def test_movmatrix():
    given = [(lane * 0x00010003,) for lane in LANES]
    found = run("movmatrix.sync.aligned.m8n8.trans.b16 {0}, {1};", "r", "r", given)
    halves = [half for (x,) in given for half in (x & 0xFFFF, x >> 16)]
    turned = [half for (x,) in found for half in (x & 0xFFFF, x >> 16)]
    assert turned == [halves[i % 8 * 8 + i // 8] for i in range(64)]


# Where element i of a thread's fragment lies, as the manual has it: lane -> (row, column).
def place_of_a(kind: str, k: int, lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    if kind == "tf32":
        return group + 8 * (i in (1, 3)), thread + 4 * (i >= 2)
    row = group if i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + 8 * (i >= 4)


def place_of_b(kind: str, k: int, lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    return (thread + 4 * i if kind == "tf32" else thread * 2 + (i & 1) + 8 * (i >= 2)), group


def place_of_c(lane: int, i: int) -> tuple[int, int]:
    return (lane >> 2) + 8 * (i >= 2), lane % 4 * 2 + (i & 1)


PRODUCTS = [
    ("f16", 16, "f32"), ("f16", 8, "f32"), ("bf16", 16, "f32"), ("bf16", 8, "f32"), ("tf32", 8, "f32"),
    ("tf32", 4, "f32"), ("f16", 16, "f16"), ("f16", 8, "f16"),
]  # fmt: skip


@pytest.mark.parametrize("kind, k, sums", PRODUCTS)
def test_mma(kind, k, sums):
    generator = torch.Generator().manual_seed(0)
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}[kind]
    sum_dtype = torch.float16 if sums == "f16" else torch.float32
    # Small integers: every product and sum is exact in every format, so that only places can be wrong.
    a, b, c = (torch.randint(-4, 5, size, generator=generator) for size in ((16, k), (k, 8), (16, 8)))
    elements_a, elements_b = 16 * k // 32, 8 * k // 32
    fragments = torch.zeros(32, 64, dtype=torch.int32)

    def pack(lane: int, first: int, values: list, dtype: torch.dtype) -> int:
        packed = torch.tensor(values).to(dtype).view(torch.int32)
        fragments[lane, first : first + len(packed)] = packed
        return first + len(packed)

    for lane in LANES:
        at = pack(lane, 0, [a[place_of_a(kind, k, lane, i)] for i in range(elements_a)], dtype)
        at = pack(lane, at, [b[place_of_b(kind, k, lane, i)] for i in range(elements_b)], dtype)
        pack(lane, at, [c[place_of_c(lane, i)] for i in range(4)], sum_dtype)
    per_register = 1 if kind == "tf32" else 2
    sizes = [elements_a // per_register, elements_b // per_register, 4 if sums == "f32" else 2]
    names, at = [], 0
    for size in sizes:
        names.append("{" + ", ".join(f"%r{i}" for i in range(at, at + size)) + "}")
        at += size

    loads = "\n".join(f"ld.global.b32 %r{i}, [%d0 + {4 * i}];" for i in range(at))
    stores = "\n".join(f"st.global.b32 [%d1 + {4 * i}], %r{at - sizes[2] + i};" for i in range(sizes[2]))
    body = f"""
    mad.wide.u32 %d0, %lane, 256, %in;
    mad.wide.u32 %d1, %lane, {4 * sizes[2]}, %out;
    {loads}
    mma.sync.aligned.m16n8k{k}.row.col.{sums}.{kind}.{kind}.{sums} {names[2]}, {names[0]}, {names[1]}, {names[2]};
    {stores}"""
    found = torch.zeros(32, 4, dtype=sum_dtype)
    launch(body, fragments, found).check()
    product = a @ b + c
    for lane in LANES:
        for i in range(4):
            assert found[lane, i] == product[place_of_c(lane, i)], (lane, i)


def test_mma_ignores_what_tf32_lacks():
    """The low 13 bits of a tf32 operand do not count."""
    given = torch.full((32, 16), 0x3F801FFF, dtype=torch.int32)
    given[:, 6:10] = 0
    found = torch.zeros(32, 4)
    loads = "\n".join(f"ld.global.b32 %r{i}, [%d0 + {4 * i}];" for i in range(10))
    body = f"""
    mad.wide.u32 %d0, %lane, 64, %in;
    mad.wide.u32 %d1, %lane, 16, %out;
    {loads}
    mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
        {{%r6, %r7, %r8, %r9}}, {{%r0, %r1, %r2, %r3}}, {{%r4, %r5}}, {{%r6, %r7, %r8, %r9}};
    st.global.v4.b32 [%d1], {{%r6, %r7, %r8, %r9}};"""
    launch(body, given, found).check()
    assert torch.equal(found, torch.full((32, 4), 8.0))
