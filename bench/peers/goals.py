"""What a row is to reach, and what the fastest engines reached elsewhere: data beside the rows.

The goal of every row is to be at least as fast as the fastest peer (`TIMES_FASTEST`), at a share of the machine's
ceiling no lower than what the fastest engine reached on another one: an AMD Zen 5 EPYC with AVX-512 and AVX512-BF16,
measured 2026-11-23 with PyTorch 2.13.0, onnxruntime 1.31.1, OpenVINO 2026.4.1 and zentorch 2.14.0.1.
"""

from dataclasses import dataclass

from ..run import Row

TIMES_FASTEST = 1.0


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
