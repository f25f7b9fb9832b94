"""One kernel with its default configuration, as `bigmodel audit` compiles it ahead of time."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AuditCase:
    """What the compiler must know of a launch, and what the machine code is then held against.

    signature: every parameter of the kernel in order, with its type: "*bf16", "i32", "fp32" ..., or "constexpr".
    constexprs: the values of the "constexpr" ones; the launcher makes a parameter that equals 1 such a value too.
    divisible_by_16: parameters whose value (for a pointer: address) is a multiple of 16, as the launcher finds it for
    aligned tensors.
    dots: (m, n, k) of each matrix product of one iteration of the inner loop.
    exps: exponentials of one iteration; bytes_loaded: what one iteration reads from global memory.
    """

    op: str
    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    divisible_by_16: tuple[str, ...]
    num_warps: int
    num_stages: int
    dtype: str  # "fp32", "bf16" or "fp16": what the products multiply
    head_dim: int | None = None
    dots: tuple[tuple[int, int, int], ...] = field(default=())
    exps: int = 0
    bytes_loaded: int = 0

    @property
    def mma_flops(self) -> int:
        """Floating point operations of the matrix products of one iteration."""
        return sum(2 * m * n * k for m, n, k in self.dots)
