"""Runs one PTX instruction on given bits: what the table of known answers is checked with."""

import struct
from collections.abc import Sequence

import torch

from . import Emulator

BYTES = {"p": 0, "h": 2, "r": 4, "d": 8}  # predicates and registers of 16, 32 and 64 bits
_WARP = 32


def f32(x: float) -> int:
    return struct.unpack("<I", struct.pack("<f", x))[0]


def f64(x: float) -> int:
    return struct.unpack("<Q", struct.pack("<d", x))[0]


def f16(x: float) -> int:
    return int.from_bytes(torch.tensor(x).half().view(torch.int16).numpy().tobytes(), "little")


def bf16(x: float) -> int:
    return int.from_bytes(torch.tensor(x).bfloat16().view(torch.int16).numpy().tobytes(), "little")


def float_of(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def run(instruction: str, results: str, sources: str, lanes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Bits of the results in each lane. instruction: with {0}, {1}, ... for the results' registers, then the sources'.
    results, sources: a letter of BYTES for each. lanes: the sources' bits; lanes beyond do not run the instruction."""
    kinds = results + sources
    names = [f"%x{i}" for i in range(len(kinds))]
    text = kernel_text(instruction.format(*names), kinds, names, len(results), len(lanes))
    given = torch.zeros(_WARP, max(len(sources), 1), dtype=torch.int64)
    for lane, values in enumerate(lanes):
        for position, value in enumerate(values):
            given[lane, position] = value - (1 << 64) if value >= 1 << 63 else value
    found = torch.full((_WARP, len(results)), -1, dtype=torch.int64)
    emulator = Emulator()
    with emulator.buffers(given=given, found=found):
        emulator.launch_ptx(text, "one", (1,), (_WARP,), [given, found])
    emulator.check()
    masks = [(1 << 8 * max(BYTES[kind], 1)) - 1 for kind in results]
    return [tuple(int(x) & mask for x, mask in zip(row, masks, strict=True)) for row in found[: len(lanes)]]


def kernel_text(instruction: str, kinds: str, names: list[str], results: int, lanes: int) -> str:
    """A kernel that loads the sources of its lane, runs the instruction in the first lanes, and stores the results."""
    declared = "\n".join(
        f".reg .{'pred' if kind == 'p' else f'b{8 * BYTES[kind]}'} {name};"
        for kind, name in zip(kinds, names, strict=True)
    )
    loads, stores = [], []
    for position, (kind, name) in enumerate(zip(kinds[results:], names[results:], strict=True)):
        loads.append(f"ld.global.b64 %word, [%in + {8 * position}];")
        loads.append(_from_word(kind, name))
    for position, (kind, name) in enumerate(zip(kinds[:results], names[:results], strict=True)):
        stores += [_to_word(kind, name), f"@%runs st.global.b64 [%out + {8 * position}], %word;"]
    width = 8 * max(len(kinds) - results, 1)
    return f"""
.version 8.8
.target sm_80
.address_size 64
.visible .entry one(.param .u64 in, .param .u64 out)
{{
.reg .b64 %in, %out, %word;
.reg .b32 %lane;
.reg .b16 %low;
.reg .pred %runs;
{declared}
mov.u32 %lane, %tid.x;
ld.param.u64 %in, [in];
ld.param.u64 %out, [out];
mad.wide.u32 %in, %lane, {width}, %in;
mad.wide.u32 %out, %lane, {8 * results}, %out;
setp.lt.u32 %runs, %lane, {lanes};
{chr(10).join(loads)}
@!%runs bra $done;
{instruction}
{chr(10).join(stores)}
$done:
ret;
}}
"""


def _from_word(kind: str, name: str) -> str:
    return {
        "p": f"setp.ne.b64 {name}, %word, 0;",
        "h": f"cvt.u16.u64 {name}, %word;",
        "r": f"cvt.u32.u64 {name}, %word;",
        "d": f"mov.b64 {name}, %word;",
    }[kind]


def _to_word(kind: str, name: str) -> str:
    return {
        "p": f"selp.b64 %word, 1, 0, {name};",
        "h": f"cvt.u64.u16 %word, {name};",
        "r": f"cvt.u64.u32 %word, {name};",
        "d": f"mov.b64 %word, {name};",
    }[kind]
