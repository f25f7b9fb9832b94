"""Where a linear layer of somebody's model is faster as `bmk.linear` than as torch's own: one table.

`bmk.linear` and the modules of `bmk.nn` made of it always use our kernels. This is for `replace_modules`, which
swaps a layer only where that has been measured to pay, and for `nn.Linear`, which asks again in every call.
"""

import functools
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from bigmodel_kernels import _C, machine

ANY = sys.maxsize


@dataclass(frozen=True)
class Row:
    """Ours is the faster one for `least_rows` to `most_rows` rows of input and at least `least_products` multiply-adds,
    and whatever the rows up to `small_products`; in a call that is recorded for gradients from `least_recorded_rows`
    on."""

    why: str
    least_rows: int = 1
    most_rows: int = ANY
    least_products: int = 0
    small_products: int = 0
    least_recorded_rows: int = 1


# So few rows our kernels multiply by a weight [out_features, in_features] as it lies, or packed in cache. Any other
# they lay out anew: seen to pay from the second number on.
FEW_ROWS, LEAST_TRANSPOSED_ROWS = 32, 9
_SLOW = "torch's products in {} are slow without instructions for them"

# By CPU target, the best of the machine; by dtype, and whether the weight is stored as [in_features, out_features]
# (GPT-2's). What is not here is torch's. Measured with two threads: bench/NOTES.md, "Linear layers of others' models".
TABLES = {
    "avx2": {  # AMD EPYC, Zen 3
        (torch.float32, False): Row(
            f"up to {FEW_ROWS} rows without gradients",
            most_rows=FEW_ROWS,
            least_products=1 << 19,
            least_recorded_rows=ANY,
        ),
        (torch.bfloat16, False): Row(_SLOW.format("bfloat16"), least_rows=2),
        (torch.float16, False): Row(_SLOW.format("float16"), least_rows=2),
        (torch.bfloat16, True): Row(_SLOW.format("bfloat16"), least_rows=LEAST_TRANSPOSED_ROWS),
        (torch.float16, True): Row(_SLOW.format("float16"), least_rows=LEAST_TRANSPOSED_ROWS),
    },
    "avx512bf16": {  # AMD EPYC, Zen 4
        (torch.float32, False): Row(
            "torch's fp32 products take a path for other processors here", least_recorded_rows=512
        ),
        (torch.float32, True): Row(
            "torch's fp32 products take a path for other processors here", least_rows=64, least_recorded_rows=ANY
        ),
        (torch.bfloat16, False): Row(
            "up to 8 rows or 2^19 multiply-adds without gradients",
            most_rows=8,
            small_products=1 << 19,
            least_recorded_rows=ANY,
        ),
        (torch.float16, False): Row(_SLOW.format("float16"), least_rows=4),
        (torch.float16, True): Row(_SLOW.format("float16"), least_rows=LEAST_TRANSPOSED_ROWS, least_recorded_rows=ANY),
    },
}
# Others' processors with AVX-512 take other paths in torch's products.
MEASURED_ON_AMD = ("avx512bf16",)
# Where torch must have no instructions for a dtype of 16 bits if the rows are to hold.
WITHOUT_INSTRUCTIONS = {"avx2": (torch.bfloat16, torch.float16), "avx512bf16": (torch.float16,)}

# The last answers of row_for: a traced graph cannot ask the extension.
_last: dict[tuple[str, torch.dtype, bool], Row | None] = {}


def ours_is_faster(x: Tensor, weight: Tensor, transposed: bool = False) -> bool:
    """Whether this call is one of the table's. transposed: weight is [in_features, out_features]."""
    device = "cpu" if x.is_cpu else x.device.type
    given = x.dtype
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else given
    if dtype is given and weight.dtype is not dtype:
        return False  # an error, and torch says which
    row = row_for(device, dtype, transposed)
    if row is None or weight.numel() == 0:
        return False
    recorded = row.least_recorded_rows > 1 and _recorded(x, weight)
    if not recorded and row.least_rows == 1 and row.most_rows == ANY and row.least_products == 0:
        return True  # whatever the size, which takes a small call long to ask for
    rows = x.numel() // weight.shape[0 if transposed else 1]
    # torch.jit.trace, for which sizes are tensors, makes one graph for all grad modes.
    if recorded and type(rows) is not Tensor and rows < row.least_recorded_rows:
        return False
    products = rows * weight.numel()
    by_rows = row.least_rows <= rows <= row.most_rows and products >= row.least_products
    return by_rows or products <= row.small_products


def _recorded(x: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad)


def row_for(device: str, dtype: torch.dtype, transposed: bool = False) -> Row | None:
    """The table's row for this machine and the CPU target in use; None where ours is not known to be faster. While
    torch.compile traces, the last answer outside it: `replace_modules` has asked."""
    asked = device, dtype, transposed
    if torch.compiler.is_compiling():
        return _last.get(asked)
    target = _C.cpu_target()
    known = device == "cpu" and why_unmeasured(dtype, target) is None
    row = _last[asked] = TABLES[target].get((dtype, transposed)) if known else None
    return row


def choice(weight: Tensor, transposed: bool = False) -> tuple[bool, str]:
    """Whether ours is the faster one in any call with this weight, and why or why not: for the report."""
    device, dtype = weight.device.type, weight.dtype
    for each in (torch.float32, torch.bfloat16, torch.float16):  # what autocast and torch.compile may ask for
        row_for(device, each, transposed)
    row = row_for(device, dtype, transposed)
    if row is not None:
        small = min(row.most_rows, ANY // weight.numel()) * weight.numel() < row.least_products
        return not small, "too small for ours to be the faster one" if small else row.why
    if device != "cpu":
        return False, f"ours has not been measured against torch's on {device}"
    stored = " with a weight stored transposed" if transposed else ""
    return False, why_unmeasured(dtype, _C.cpu_target()) or f"ours is not faster in {_name(dtype)}{stored}"


@functools.cache
def why_unmeasured(dtype: torch.dtype, target: str) -> str | None:
    """Why the table says nothing about a dtype on this machine; None where it does."""
    best = _C.supported_cpu_targets()[0]
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"our kernels have no {_name(dtype)}"
    if target not in TABLES or target != best:
        return f"ours has not been measured against torch's on CPU target {target if target == best else best}"
    if target in MEASURED_ON_AMD and not machine.is_amd():
        return f"ours has not been measured against torch's on CPU target {target} but on AMD's processors"
    if dtype in WITHOUT_INSTRUCTIONS[target] and _torch_has_instructions(dtype):
        return f"torch has instructions for {_name(dtype)} here, against which ours has not been measured"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _torch_has_instructions(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    asked = "_is_mkldnn_bf16_supported" if dtype is torch.bfloat16 else "_is_mkldnn_fp16_supported"
    return getattr(torch.ops.mkldnn, asked)()
