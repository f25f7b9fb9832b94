"""The attention kernels with their default launches, for `bigmodel audit` to compile ahead of time.

The launches are those that the launchers themselves would run: they are built of tensors without data.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from .attention_launch import Call

_TYPE_NAMES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.bool: "*i1",
    torch.int64: "*i64",
}


def specialization(call: Call) -> tuple[dict[str, Any], dict, tuple]:
    """(signature, constexprs, divisible by 16) of a call, as Triton's launcher would find them: a tuple of arguments has
    a tuple of types; constexprs and what is divisible by 16 are named by path, a tuple of positions. Tensors count as
    aligned."""
    constexprs: dict[tuple[int, ...], Any] = {}
    divisible: list[tuple[int, ...]] = []

    def type_of(argument: Any, path: tuple[int, ...]) -> Any:
        if isinstance(argument, tuple):
            return type(argument)(*(type_of(each, (*path, i)) for i, each in enumerate(argument)))
        if isinstance(argument, Tensor):
            divisible.append(path)
            return _TYPE_NAMES[argument.dtype]
        if isinstance(argument, float):
            return "fp32"
        if argument is None or isinstance(argument, bool) or argument == 1:
            constexprs[path] = argument
            return "constexpr"
        if argument % 16 == 0:
            divisible.append(path)
        return "i32" if -(2**31) <= argument < 2**31 else "i64"

    signature = {}
    for position, (parameter, argument) in enumerate(zip(call.kernel.params, call.arguments, strict=True)):
        if parameter.is_constexpr:
            constexprs[position,] = argument
            signature[parameter.name] = "constexpr"
        else:
            signature[parameter.name] = type_of(argument, (position,))
    return signature, constexprs, tuple(divisible)
