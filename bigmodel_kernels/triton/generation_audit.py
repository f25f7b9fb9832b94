"""The kernels of attention_decode and rotary with their default launches, for `bigmodel audit`: a step of generation
of eight sequences, over caches of bf16 or int8, contiguous or in pages; and a prompt's angles.

The launches are those of the launchers themselves, run on tensors without data.
"""

import torch

from . import launch
from .attention_decode import attention_decode
from .audit_case import MULTIPROCESSORS, AuditCase, specialization
from .rotary import rotary

_BATCH, _HEADS, _KV_HEADS, _LENGTH, _PAGE_SIZE = 8, 32, 8, 8192, 16
_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def audit_cases(arch: int, every: bool = False) -> list[AuditCase]:
    """The kernels of these ops as they are launched by default on an architecture (80 is sm_80)."""
    cases = []
    for dtype in ("fp16",) if arch < 80 else ("bf16", *(["fp16"] if every else [])):
        calls = {
            (f"d{head_dim}, {kind}{', pages' if paged else ''}", head_dim): (kind, paged)
            for head_dim in (64, 128, 256)
            for kind in (dtype, "int8")
            for paged in (False, True)
        }
        for (name, head_dim), (kind, paged) in calls.items():
            with launch.recorded(arch, MULTIPROCESSORS[arch]) as launches:
                _decode(_HALF[dtype], head_dim, kind == "int8", paged)
            # The new value is written as the new key is.
            cases += [_case("attention_decode", name, dtype, each, head_dim) for each in (launches[0], *launches[2:])]
        for interleaved in (False, True):
            with launch.recorded(arch, MULTIPROCESSORS[arch]) as launches:
                _rotary(_HALF[dtype], interleaved)
            cases += [_case("rotary", "interleaved" if interleaved else "halves", dtype, *launches, None)]
    return cases


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _decode(dtype: torch.dtype, head_dim: int, int8: bool, paged: bool) -> None:
    pages = _BATCH * _LENGTH // _PAGE_SIZE
    entries = (pages, _KV_HEADS, _PAGE_SIZE) if paged else (_BATCH, _KV_HEADS, _LENGTH)
    cache = _empty(*entries, head_dim, dtype=torch.int8 if int8 else dtype)
    scales = _empty(*entries, dtype=torch.float32) if int8 else None
    table = _empty(_BATCH, pages // _BATCH, dtype=torch.int32) if paged else None
    new = _empty(_BATCH, _KV_HEADS, 1, head_dim, dtype=dtype)
    lengths = _empty(_BATCH, dtype=torch.int32)
    query = _empty(_BATCH, _HEADS, 1, head_dim, dtype=dtype)
    attention_decode(query, cache, cache, lengths, table, new, new, scales, scales)


def _rotary(dtype: torch.dtype, interleaved: bool) -> None:
    query, key = (_empty(_BATCH, heads, _LENGTH, 128, dtype=dtype) for heads in (_HEADS, _KV_HEADS))
    table = _empty(_LENGTH, 64, dtype=torch.float32)
    rotary(query, key, table, table, interleaved=interleaved)


def _case(op: str, name: str, dtype: str, each: launch.Launch, head_dim: int | None) -> AuditCase:
    signature, constexprs, divisible = specialization(each.kernel, each.arguments)
    kernel = each.kernel.__name__.removeprefix("_").removesuffix("_kernel")
    return AuditCase(
        op,
        f"{kernel} ({name})",
        each.kernel,
        signature,
        constexprs,
        divisible,
        each.num_warps,
        each.num_stages,
        dtype,
        max_registers=each.max_registers,
        head_dim=head_dim,
    )
