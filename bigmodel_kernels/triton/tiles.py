"""What kernels of matrices with any strides share, and what their launchers ask of tensors."""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def row_pointers(matrix, rows, row_stride):
    """Pointers [rows, 1] to the first element of each row; None for a matrix that is absent."""
    if matrix is None:
        pointers = None
    else:
        pointers = matrix + rows[:, None] * row_stride
    return pointers


@triton.jit
def inside(rows, columns, row_count, column_count):
    """Which elements of a tile lie inside the matrix."""
    return (rows < row_count)[:, None] & (columns < column_count)[None, :]


def as_rows(x: Tensor | None) -> Tensor | None:
    """[..., features] as [rows, features]: a view where the strides allow it."""
    return None if x is None else x.reshape(-1, x.shape[-1])


def strides(x: Tensor | None) -> tuple[int, ...]:
    """The strides of a matrix; of one that is absent, any."""
    return (0, 1) if x is None else x.stride()


def stride(x: Tensor | None) -> int:
    """The stride of a vector; of one that is absent, any."""
    return 1 if x is None else x.stride(0)


def nothing(like: Tensor) -> Tensor:
    """What stands for an output that was not asked for or does not exist."""
    return like.new_empty(0)


def given(saved: Tensor | None) -> Tensor | None:
    """What a forward pass saved; None where it left zero elements because there was nothing to save."""
    return None if saved is None or saved.numel() == 0 else saved


def on_device(x: Tensor) -> contextlib.AbstractContextManager:
    """Kernels launch on the current device, which must be x's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
