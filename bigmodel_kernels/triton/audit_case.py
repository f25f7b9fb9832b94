"""One kernel with its default launch, as `bigmodel audit` compiles it ahead of time."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .launch import as_constexpr

Path = tuple[int, ...]

_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.bool: "*i1",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


# What a typical device of the architecture has: T4, A100, RTX 3090, RTX 4090, H100, B200, RTX 5090.
MULTIPROCESSORS = {75: 40, 80: 108, 86: 82, 89: 128, 90: 132, 100: 148, 120: 170}


@dataclass(frozen=True)
class AuditCase:
    """What the compiler must know of a launch, and what the machine code is then held against.

    signature: every parameter of the kernel in order, with its type: "*bf16", "i32", "fp32" ..., "constexpr", or a
    tuple of these for a parameter that is one. constexprs: the values of the constexpr ones, by path: the position of
    the parameter, followed by the position in it where it is a tuple. divisible_by_16: paths of what the launcher finds
    to be a multiple of 16 (pointers: their address).
    dots: (m, n, k) of each matrix product of one iteration of the inner loop. exps: its exponentials. bytes_loaded:
    what it reads from global memory that `readers` blocks, running at once, read too, so that memory delivers it once
    for all of them; bytes_alone: what it reads or writes there that no other block does. iterations: of the loop in one
    block, where what follows it is to be counted with it. inner_products: where it has loops inside of it, over a part
    of the features at a time, the multiply-adds of each of them before it ends.
    """

    op: str
    name: str
    kernel: Any
    signature: dict[str, Any]
    constexprs: dict[Path, Any]
    divisible_by_16: tuple[Path, ...]
    num_warps: int
    num_stages: int
    dtype: str  # "fp32", "tf32", "bf16" or "fp16": what the products multiply, or for a kernel without products reads
    max_registers: int | None = None  # per thread; None: as the compiler thinks best
    head_dim: int | None = None
    dots: tuple[tuple[int, int, int], ...] = ()
    exps: int = 0
    bytes_loaded: int = 0
    readers: int = 8
    bytes_alone: int = 0
    iterations: int | None = None
    inner_products: int = 0


def specialization(kernel: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[Path, Any], tuple[Path, ...]]:
    """(signature, constexprs, divisible_by_16) of a launch with these arguments by name, as Triton's launcher finds
    them. Tensors need no data and count as aligned."""
    constexprs: dict[Path, Any] = {}
    divisible: list[Path] = []

    def type_of(argument: Any, path: Path) -> Any:
        if isinstance(argument, tuple):
            return type(argument)(*(type_of(each, (*path, i)) for i, each in enumerate(argument)))
        if isinstance(argument, Tensor):
            divisible.append(path)
            return _POINTERS[argument.dtype]
        if argument is None or isinstance(argument, bool) or (isinstance(argument, int) and argument == 1):
            constexprs[path] = argument
            return "constexpr"
        if isinstance(argument, float):
            return "fp32"
        if argument % 16 == 0:
            divisible.append(path)
        return "i32" if -(2**31) <= argument < 2**31 else "i64"

    signature = {}
    for position, parameter in enumerate(kernel.params):
        argument = arguments[parameter.name]
        if parameter.is_constexpr:
            constexprs[position,] = as_constexpr(argument)
            signature[parameter.name] = "constexpr"
        else:
            signature[parameter.name] = type_of(argument, (position,))
    return signature, constexprs, tuple(divisible)
