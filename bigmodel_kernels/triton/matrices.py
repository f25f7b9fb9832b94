"""Matrices and vectors with any strides: what kernels take, and what their launchers ask of tensors."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Matrix(NamedTuple):
    """A matrix as a kernel takes it: a pointer and strides in elements. data is None where there is no matrix."""

    data: Any
    row_stride: Any
    column_stride: Any


class Vector(NamedTuple):
    data: Any
    stride: Any


ABSENT = Matrix(None, 0, 0)
ABSENT_VECTOR = Vector(None, 0)


def matrix(x: Tensor | None) -> Matrix:
    """[..., features] as [rows, features]: a view where the strides allow it."""
    if x is None:
        return ABSENT
    x = x.reshape(-1, x.shape[-1])
    return Matrix(x, *x.stride())


def vector(x: Tensor | None) -> Vector:
    return ABSENT_VECTOR if x is None else Vector(x, x.stride(0))


def far_columns(columns: int, *given: Matrix | Vector) -> bool:
    """Whether the offset from a first to a last column takes more than 31 bits."""
    strides = (x.stride if isinstance(x, Vector) else x.column_stride for x in given)
    return any((columns - 1) * stride >= 2**31 for stride in strides)


def transposed(x: Matrix) -> Matrix:
    return Matrix(x.data, x.column_stride, x.row_stride)


@triton.jit
def row_pointers(x, rows):
    """Pointers [rows, 1] to the first element of each row of a Matrix; None for one that is absent."""
    pointers = None if x.data is None else x.data + rows[:, None] * x.row_stride
    return pointers


@triton.jit
def from_block(x, row, column):
    """The Matrix that begins at a row and a column of another, by 64-bit offsets."""
    start = x.data + tl.cast(row, tl.int64) * x.row_stride + tl.cast(column, tl.int64) * x.column_stride
    return Matrix(start, x.row_stride, x.column_stride)


@triton.jit
def pointers(x, rows, columns):
    """Pointers to a tile of a Matrix."""
    return x.data + rows[:, None] * x.row_stride + columns[None, :] * x.column_stride


@triton.jit
def inside(rows, columns, row_count, column_count):
    """Which elements of a tile lie inside the matrix."""
    return (rows < row_count)[:, None] & (columns < column_count)[None, :]


def nothing(like: Tensor) -> Tensor:
    """What stands for an output that was not asked for or does not exist."""
    return like.new_empty(0)


def given(saved: Tensor | None) -> Tensor | None:
    """What a forward pass saved; None where it left zero elements because there was nothing to save."""
    return None if saved is None or saved.numel() == 0 else saved
