"""TF32 in tests: every way to set torch's switch, and products as TF32 has them."""

import contextlib
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode

MATMUL = torch.backends.cuda.matmul


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """torch's switches, put back at the end as they were: the newer one last, for the older ones write it."""
    before = torch.backends.fp32_precision, MATMUL.fp32_precision
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.fp32_precision, MATMUL.fp32_precision = before


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """Inside, torch's switch allows TF32."""
    with restored():
        MATMUL.fp32_precision = "tf32"
        yield


def set_allow_tf32(value):
    MATMUL.allow_tf32 = value


def set_fp32_precision(value):
    MATMUL.fp32_precision = value


def set_for_all_backends(value):
    torch.backends.fp32_precision = value


ON = {
    "allow_tf32": lambda: set_allow_tf32(True),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "fp32_precision": lambda: set_fp32_precision("tf32"),
    "all backends": lambda: set_for_all_backends("tf32"),
    "the newer one last": lambda: (set_allow_tf32(False), set_fp32_precision("tf32")),
}
OFF = {
    "untouched": lambda: None,
    "allow_tf32": lambda: (set_allow_tf32(True), set_allow_tf32(False)),
    "highest": lambda: torch.set_float32_matmul_precision("highest"),
    "fp32_precision": lambda: set_fp32_precision("ieee"),
    # allow_tf32 and get_float32_matmul_precision raise here: the two interfaces disagree.
    "the newer one last": lambda: (torch.set_float32_matmul_precision("high"), set_fp32_precision("ieee")),
    "matmul apart": lambda: (set_for_all_backends("tf32"), set_fp32_precision("ieee")),
}


def rounded(x: torch.Tensor) -> torch.Tensor:
    """x to the nearest TF32, ten bits of mantissa, ties away from zero."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class Products(TorchDispatchMode):
    """Inside, torch's own products of float32 take their factors rounded to TF32 and sum in float32: on this a kernel's
    loss in TF32 is judged, as that in another dtype is on the reference's in that dtype."""

    FACTORS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "mv": 0, "addmv": 1, "dot": 0}  # the first of both

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if name in self.FACTORS:
            first = self.FACTORS[name]
            factors = arguments[first : first + 2]
            assert all(x.dtype == torch.float32 for x in factors)
            arguments = (*arguments[:first], *map(rounded, factors), *arguments[first + 2 :])
            self.count += 1
        return function(*arguments, **(options or {}))
