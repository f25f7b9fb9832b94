"""What a row is to reach, and what the fastest engines reached elsewhere: data beside the rows.

A goal has two halves: how many times as fast as the fastest peer, or in fp16, which other engines refuse or answer with
bf16's errors, as torch as it is shipped; and what percent of the machine's ceiling (of multiply-adds, or of the
memory's bandwidth for what reads more than it computes). Elsewhere is an AMD Zen 5 EPYC with AVX-512 and AVX512-BF16,
measured 2026-11-23 with PyTorch 2.13.0, onnxruntime 1.31.1, OpenVINO 2026.4.1 and zentorch 2.14.0.1. The percentages of
bf16 are of the bf16 dot product, where the CPU has it.
"""

import re
from dataclasses import dataclass

from ..run import Row


@dataclass(frozen=True)
class Goal:
    """times: of the fastest peer's speed, or of torch's. percent: of the ceiling by dtype; a dtype that is absent has
    none."""

    times: float
    percent: dict[str, int]
    of_torch: bool = False

    def text(self, dtype: str) -> str:
        """As the table shows it."""
        of_torch = " torch" if self.of_torch else ""
        return f"{self.times:g}x{of_torch}" + (f", {self.percent[dtype]} %" if dtype in self.percent else "")


def goal_of(row: Row) -> Goal:
    """The first goal whose patterns match a row; every row has one."""
    name = f"{row.op} {row.shape} {row.pass_name}"
    return next(goal for pattern, dtypes, goal in _GOALS if row.dtype in dtypes and re.fullmatch(pattern, name))


_HALF = ("fp16",)
_EVERY = ("fp32", "bf16", "fp16")


def _goal(pattern: str, times: float, dtypes: tuple[str, ...] = ("fp32", "bf16"), **percent: int):
    return pattern, dtypes, Goal(times, percent, of_torch=dtypes == _HALF)


_GOALS = [
    # On a CPU without fp16 arithmetic: fp32's percentages.
    _goal(r"attention .*\) causal fwd", 3.5, _HALF, fp16=72),
    _goal(r"attention \(4,8,512,64\) .*", 3.5, _HALF, fp16=70),
    _goal(r"attention .*", 3.5, _HALF, fp16=80),
    _goal(r"(linear|feed_forward) .*", 7, _HALF, fp16=88),
    _goal(r"attention \(1,4,32,32\) fwd", 1.2),
    _goal(r"attention \(1,16,2048,64\) fwd", 1.1, fp32=80, bf16=65),
    _goal(r"attention \(1,16,2048,128\) fwd", 1.1, fp32=85, bf16=75),
    _goal(r"attention \(1,16,2048,\d+\) causal fwd", 1.4, fp32=72, bf16=58),
    _goal(r"attention \((4,8,512|8,12,128),64\) fwd", 1.3, fp32=70),
    _goal(r"attention \((4,8,512|8,12,128),64\) causal fwd", 2, fp32=50),
    _goal(r"attention \(1,32/8,4096,128\) causal fwd", 1.2, fp32=80, bf16=68),
    _goal(r"attention .* (padding|additive) mask fwd", 1.3),
    _goal(r"attention \(4,8,512,64\) causal fwd\+bwd", 2, fp32=50, bf16=40),
    _goal(r"attention .*\) causal fwd\+bwd", 1.4, fp32=70, bf16=60),
    _goal(r"attention .*\) fwd\+bwd", 1.1, fp32=80, bf16=72),
    _goal(r"decode .*", 2.5, fp32=85, bf16=85),
    _goal(r"nn (MHA|EncoderLayer) 64/4, 1x16 fwd", 1.2),
    _goal(r"nn MHA [^w].* fwd", 1.15, fp32=85, bf16=82),
    _goal(r"nn MHA weights .* fwd", 1.4),
    _goal(r"nn MHA .* fwd\+bwd", 1.25, fp32=80, bf16=70),
    _goal(r"nn EncoderLayer .* fwd", 1.12, fp32=88, bf16=88),
    _goal(r"nn EncoderLayer .* fwd\+bwd", 1.15, ("fp32",), fp32=85),
    _goal(r"nn EncoderLayer .* fwd\+bwd", 1.25, ("bf16",), bf16=80),
    _goal(r"feed_forward .* swiglu fwd", 1.4, fp32=90, bf16=90),
    _goal(r"feed_forward .* fwd", 1.05, fp32=92, bf16=95),
    _goal(r"feed_forward .* fwd\+bwd", 1.1, fp32=88, bf16=88),
    _goal(r"norm .* fwd", 1.15, fp32=85, bf16=85),
    _goal(r"norm .* fwd\+bwd", 1.5, fp32=85, bf16=85),
    _goal(r"training .*", 1.3),
    _goal(r".*", 1.0, _EVERY),
]


@dataclass(frozen=True)
class Elsewhere:
    """The fastest engine and its percent of the multiply-add peak (bf16 rows: of the bf16 dot product's)."""

    engine: str
    percent: int


# op | shape | dtype | pass | threads | engine | percent
_TABLE = """
attention | (1,16,2048,64) | fp32 | fwd | 2 | ORT MultiHeadAttention | 74
attention | (1,16,2048,64) causal | fp32 | fwd | 2 | torch+MKL512 sdpa | 51
attention | (4,8,512,64) | fp32 | fwd | 2 | ORT MultiHeadAttention | 56
attention | (4,8,512,64) causal | fp32 | fwd | 2 | OpenVINO | 30
attention | (1,16,2048,128) | fp32 | fwd | 2 | ORT MultiHeadAttention | 77
attention | (1,16,2048,128) causal | fp32 | fwd | 2 | zentorch compile | 59
attention | (8,12,128,64) | fp32 | fwd | 2 | zentorch sdpa | 53
attention | (8,12,128,64) causal | fp32 | fwd | 2 | zentorch sdpa | 25
attention | (1,16,2048,64) | bf16 | fwd | 2 | OpenVINO bf16 | 61
attention | (1,16,2048,64) causal | bf16 | fwd | 2 | zentorch sdpa | 46
attention | (4,8,512,64) | bf16 | fwd | 2 | zentorch sdpa | 51
attention | (4,8,512,64) causal | bf16 | fwd | 2 | zentorch sdpa | 25
attention | (1,16,2048,128) | bf16 | fwd | 2 | torch+MKL512 sdpa | 71
attention | (1,16,2048,128) causal | bf16 | fwd | 2 | torch+MKL512 sdpa | 55
attention | (8,12,128,64) | bf16 | fwd | 2 | zentorch sdpa | 48
attention | (8,12,128,64) causal | bf16 | fwd | 2 | zentorch compile | 21
attention | (1,16,2048,64) | fp32 | fwd | 1 | OpenVINO | 73
attention | (1,16,2048,64) causal | fp32 | fwd | 1 | torch+MKL512 sdpa | 55
attention | (1,16,2048,64) | bf16 | fwd | 1 | OpenVINO bf16 | 62
attention | (1,16,2048,64) causal | bf16 | fwd | 1 | zentorch sdpa | 46
attention | (1,16,2048,64) | fp32 | fwd+bwd | 2 | torch+MKL512 sdpa | 64
attention | (1,16,2048,64) causal | fp32 | fwd+bwd | 2 | torch+MKL512 sdpa | 51
attention | (4,8,512,64) | fp32 | fwd+bwd | 2 | torch+MKL512 compiled matmul | 53
attention | (4,8,512,64) causal | fp32 | fwd+bwd | 2 | torch+MKL512 sdpa | 26
attention | (1,16,2048,128) | fp32 | fwd+bwd | 2 | torch+MKL512 sdpa | 77
attention | (1,16,2048,128) causal | fp32 | fwd+bwd | 2 | torch+MKL512 sdpa | 59
attention | (1,16,2048,64) | bf16 | fwd+bwd | 2 | torch+MKL512 compiled matmul | 55
attention | (1,16,2048,64) causal | bf16 | fwd+bwd | 2 | torch+MKL512 sdpa | 45
attention | (4,8,512,64) | bf16 | fwd+bwd | 2 | torch matmul | 53
attention | (4,8,512,64) causal | bf16 | fwd+bwd | 2 | torch+MKL512 matmul | 19
attention | (1,16,2048,128) | bf16 | fwd+bwd | 2 | torch+MKL512 sdpa | 71
attention | (1,16,2048,128) causal | bf16 | fwd+bwd | 2 | torch+MKL512 sdpa | 52
attention | (4,8,512,64) padding mask | fp32 | fwd | 2 | zentorch sdpa | 52
attention | (4,8,512,64) additive mask | fp32 | fwd | 2 | OpenVINO | 55
attention | (4,8,512,64) padding mask | bf16 | fwd | 2 | zentorch sdpa | 50
attention | (4,8,512,64) additive mask | bf16 | fwd | 2 | OpenVINO bf16 | 45
attention | (1,4,32,32) | fp32 | fwd | 2 | ORT Attention | 11
attention | (1,4,32,32) | bf16 | fwd | 2 | torch+MKL512 sdpa | 6
nn | MHA 512/8, 4x512 | fp32 | fwd | 2 | zentorch compile | 72
nn | MHA weights 512/8, 4x512 | fp32 | fwd | 2 | torch+MKL512 compile | 64
nn | MHA 512/8, 4x512 | fp32 | fwd+bwd | 2 | torch+MKL512 linear+sdpa | 65
nn | MHA 1024/16, 1x2048 | fp32 | fwd | 2 | OpenVINO | 75
nn | MHA 1024/16, 1x2048 | fp32 | fwd+bwd | 2 | torch+MKL512 nn | 66
nn | MHA 512/8, 4x512 | bf16 | fwd | 2 | OpenVINO bf16 | 75
nn | MHA weights 512/8, 4x512 | bf16 | fwd | 2 | torch nn | 51
nn | MHA 512/8, 4x512 | bf16 | fwd+bwd | 2 | torch+MKL512 linear+sdpa | 53
nn | MHA 1024/16, 1x2048 | bf16 | fwd | 2 | OpenVINO bf16 | 73
nn | MHA 1024/16, 1x2048 | bf16 | fwd+bwd | 2 | torch+MKL512 linear+sdpa | 57
nn | MHA 64/4, 1x16 | fp32 | fwd | 2 | ORT fused graph | 10
nn | MHA 64/4, 1x16 | bf16 | fwd | 2 | OpenVINO bf16 | 3
nn | EncoderLayer 64/4, 1x16 | fp32 | fwd | 2 | ORT fused graph | 13
nn | EncoderLayer 64/4, 1x16 | bf16 | fwd | 2 | OpenVINO bf16 | 3
nn | EncoderLayer 512/8, 4x512 | fp32 | fwd | 2 | OpenVINO | 78
nn | EncoderLayer 512/8, 4x512 | fp32 | fwd+bwd | 2 | torch+MKL512 linear+sdpa | 74
nn | EncoderLayer 512/8, 4x512 | bf16 | fwd | 2 | OpenVINO bf16 | 74
nn | EncoderLayer 512/8, 4x512 | bf16 | fwd+bwd | 2 | torch+MKL512 linear+sdpa | 64
nn | EncoderLayer 512/8, 4x512 | fp32 | fwd | 1 | OpenVINO | 79
nn | EncoderLayer 512/8, 4x512 | bf16 | fwd | 1 | OpenVINO bf16 | 82
feed_forward | 2048x512, hidden 2048, gelu | fp32 | fwd | 2 | zentorch compile | 81
feed_forward | 512x1024, hidden 4096, gelu | fp32 | fwd | 2 | OpenVINO | 87
feed_forward | 2048x512, hidden 2048, gelu | fp32 | fwd+bwd | 2 | torch+MKL512 compile | 78
feed_forward | 512x1024, hidden 4096, gelu | fp32 | fwd+bwd | 2 | torch+MKL512 compile | 80
feed_forward | 2048x512, hidden 2048, gelu | bf16 | fwd | 2 | zentorch linear | 95
feed_forward | 512x1024, hidden 4096, gelu | bf16 | fwd | 2 | zentorch linear | 95
feed_forward | 2048x512, hidden 2048, gelu | bf16 | fwd+bwd | 2 | torch | 83
feed_forward | 512x1024, hidden 4096, gelu | bf16 | fwd+bwd | 2 | torch | 87
"""


def elsewhere(row: Row) -> Elsewhere | None:
    """What was reached elsewhere on this row, if it was measured there in percent of the same ceiling."""
    return ELSEWHERE.get((*row.key, row.threads))


def _read(table: str) -> dict[tuple, Elsewhere]:
    found = {}
    for line in table.strip().splitlines():
        *key, threads, engine, percent = (cell.strip() for cell in line.split(" | "))
        found[(*key, int(threads))] = Elsewhere(engine, int(percent))
    return found


# (op, shape, dtype, pass, threads) -> what was reached there.
ELSEWHERE = _read(_TABLE)
