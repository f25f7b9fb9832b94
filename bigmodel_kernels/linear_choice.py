"""Where a linear layer of somebody's model is faster as `bmk.linear` than as torch's own: one table, by dtype.

`bmk.linear` and the modules of `bmk.nn` always use our kernels. This is for `replace_modules`, which swaps a layer only
where that has been measured to pay.
"""

import functools
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from bigmodel_kernels import _C

ANY = sys.maxsize


@dataclass(frozen=True)
class Row:
    """Ours is the faster one for at most `most_rows` rows of input; with a weight stored as [in_features, out_features]
    (GPT-2's), for at most `most_rows_transposed`, and for more than FEW_ROWS."""

    most_rows: int
    most_rows_transposed: int
    why: str


# Measured on an AMD EPYC (Zen 3), two threads, CPU target avx2: bench/NOTES.md, "Linear layers of others' models".
MEASURED_TARGET = "avx2"
TABLE = {
    torch.float32: Row(8, 0, "up to 8 rows: the weight is read as it lies"),
    torch.bfloat16: Row(ANY, ANY, "torch's products in bfloat16 are slow without instructions for them"),
    torch.float16: Row(ANY, ANY, "torch's products in float16 are slow without instructions for them"),
}
# So few rows our kernels multiply by a weight [out_features, in_features] as it lies; the other they lay out anew.
FEW_ROWS = 8


def ours_is_faster(x: Tensor, weight: Tensor, transposed: bool = False) -> bool:
    """Whether this call is one of the table's. transposed: weight is [in_features, out_features]."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if dtype is x.dtype and weight.dtype is not dtype:
        return False  # an error, and torch says which
    most = most_rows(device, dtype, transposed)
    in_features = weight.shape[0 if transposed else 1]
    return (FEW_ROWS * in_features if transposed else 0) < x.numel() <= most * in_features


# The last answers of most_rows: a traced graph cannot ask the extension.
_last: dict[tuple[str, torch.dtype, bool], int] = {}


def most_rows(device: str, dtype: torch.dtype, transposed: bool = False) -> int:
    """Of a table's row, for the CPU target in use; 0 where ours is not known to be faster. While torch.compile traces,
    the last answer outside it, which `replace_modules` has asked for."""
    asked = device, dtype, transposed
    if torch.compiler.is_compiling():
        return _last.get(asked, 0)
    if device != "cpu" or why_unmeasured(dtype, _C.cpu_target()):
        _last[asked] = 0
    else:
        _last[asked] = TABLE[dtype].most_rows_transposed if transposed else TABLE[dtype].most_rows
    return _last[asked]


def reason(device: str, dtype: torch.dtype, transposed: bool = False) -> str:
    """In words, for the report: why ours is the faster one, or is not known to be."""
    if device != "cpu":
        return f"ours has not been measured against torch's on {device}"
    unmeasured = why_unmeasured(dtype, _C.cpu_target())
    if unmeasured:
        return unmeasured
    if not most_rows(device, dtype, transposed):
        return f"ours is not faster in {name_of(dtype)}" + (" with a weight stored transposed" if transposed else "")
    return TABLE[dtype].why


@functools.cache
def why_unmeasured(dtype: torch.dtype, target: str) -> str | None:
    """Why the table says nothing about a dtype on this machine; None where it does."""
    best = _C.supported_cpu_targets()[0]
    if dtype not in TABLE:
        return f"our kernels have no {name_of(dtype)}"
    if target != MEASURED_TARGET or best != MEASURED_TARGET:
        return f"ours has not been measured against torch's on CPU target {target if target == best else best}"
    if dtype is not torch.float32 and _torch_has_instructions(dtype):
        return f"torch has instructions for {name_of(dtype)} here, against which ours has not been measured"
    return None


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _torch_has_instructions(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    asked = "_is_mkldnn_bf16_supported" if dtype is torch.bfloat16 else "_is_mkldnn_fp16_supported"
    return getattr(torch.ops.mkldnn, asked)()
