"""The kernels of add_norm, linear, feed_forward and linear_cross_entropy with their default launches, for `bigmodel
audit`.

The launches are those of the launchers themselves, run on tensors without data.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from . import launch
from .add_norm import add_norm
from .add_norm_backward import add_norm_backward
from .audit_case import MULTIPROCESSORS, AuditCase, specialization
from .feed_forward import feed_forward
from .feed_forward_backward import feed_forward_backward
from .linear import linear
from .linear_backward import linear_backward
from .linear_cross_entropy import linear_cross_entropy
from .linear_cross_entropy_backward import linear_cross_entropy_backward
from .product import ONES

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_ROWS, _WIDTH, _HIDDEN, _FEW_ROWS, _VOCABULARY = 8192, 4096, 16384, 256, 128256


def audit_cases(arch: int, every: bool = False) -> list[AuditCase]:
    """The kernels of these ops as they are launched by default on an architecture (80 is sm_80), in TF32 those with
    products. every: in fp16 too where there is bf16, whose code is all but the same."""
    cases = []
    for dtype in ("fp32", "fp16") if arch < 80 else ("fp32", "tf32", "bf16", *(["fp16"] if every else [])):
        for op, calls in _CALLS.items():
            for name, call in calls(_DTYPES[dtype]).items():
                with launch.recorded(arch, MULTIPROCESSORS[arch], tf32=dtype == "tf32") as launches:
                    call()
                found = [each for each in launches if dtype != "tf32" or "BLOCKS" in each.arguments]
                cases += _named([_case(op, name, dtype, each) for each in found])
    return cases


def _named(cases: list[AuditCase]) -> list[AuditCase]:
    """The different kernels of one call, numbered where several have one name."""
    different = list({(case.name, str(case.signature), str(case.constexprs)): case for case in cases}.values())
    names = [case.name for case in different]
    return [
        replace(case, name=f"{case.name}, {names[: i + 1].count(case.name)}") if names.count(case.name) > 1 else case
        for i, case in enumerate(different)
    ]


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _add_norm(dtype: torch.dtype) -> dict[str, Callable]:
    def forward(kind: str, width: int) -> Callable:
        x, weight = _empty(_ROWS, width, dtype=dtype), _empty(width, dtype=dtype)
        return lambda: add_norm(x, x, weight, weight if kind == "layer" else None, kind=kind)

    def backward(kind: str, width: int) -> Callable:
        x, weight, rows = (
            _empty(_ROWS, width, dtype=dtype),
            _empty(width, dtype=dtype),
            _empty(_ROWS, dtype=torch.float32),
        )
        return lambda: add_norm_backward(
            x, x, x, weight, rows, rows, kind=kind, output_mask=(True, True, kind == "layer")
        )

    sizes = (("layer", 1024), ("layer", _WIDTH), ("rms", _WIDTH), ("layer", 65536))
    return {
        f"{kind} {width}{suffix}": call(kind, width)
        for call, suffix in ((forward, ""), (backward, " backward"))
        for kind, width in sizes
    }


def _linear(dtype: torch.dtype) -> dict[str, Callable]:
    weight, bias = _empty(_WIDTH, _WIDTH, dtype=dtype), _empty(_WIDTH, dtype=dtype)

    def forward(rows: int, **options) -> Callable:
        x = _empty(rows, _WIDTH, dtype=dtype)
        return lambda: linear(x, weight, bias, x, **options)

    x = _empty(_ROWS, _WIDTH, dtype=dtype)
    return {
        "bias residual": forward(_ROWS),
        "few rows": forward(_FEW_ROWS),
        "gelu": forward(_ROWS, activation="gelu", save_preactivation=True),
        "backward": lambda: linear_backward(x, x, weight, bias),
        "gelu backward": lambda: linear_backward(x, x, weight, bias, x, activation="gelu"),
    }


def _feed_forward(dtype: torch.dtype) -> dict[str, Callable]:
    x, h = _empty(_ROWS, _WIDTH, dtype=dtype), _empty(_ROWS, _HIDDEN, dtype=dtype)
    w1, w2 = _empty(_HIDDEN, _WIDTH, dtype=dtype), _empty(_WIDTH, _HIDDEN, dtype=dtype)
    seed = _empty(dtype=torch.int64)
    return {
        "gelu dropout": lambda: feed_forward(
            x, w1, None, w2, None, dropout_seed=seed, activation="gelu", dropout_p=0.1
        ),
        "swiglu": lambda: feed_forward(x, w1, None, w2, None, w1, activation="silu", gate="hidden"),
        "gelu backward": lambda: feed_forward_backward(x, x, w1, None, w2, None, preactivation=h, activation="gelu"),
        "swiglu backward": lambda: feed_forward_backward(
            x, x, w1, None, w2, None, w1, None, h, h, activation="silu", gate="hidden"
        ),
    }


def _linear_cross_entropy(dtype: torch.dtype) -> dict[str, Callable]:
    weight, bias = _empty(_VOCABULARY, _WIDTH, dtype=dtype), _empty(_VOCABULARY, dtype=dtype)
    options = {"label_smoothing": 0.1, "z_loss": 1e-4, "softcap": 30.0}

    def forward(rows: int, bias: torch.Tensor | None = None, **options) -> Callable:
        x, target = _empty(rows, _WIDTH, dtype=dtype), _empty(rows, dtype=torch.int64)
        return lambda: linear_cross_entropy(x, weight, target, bias, **options)

    def backward(bias: torch.Tensor | None = None, **options) -> Callable:
        x, target = _empty(_ROWS, _WIDTH, dtype=dtype), _empty(_ROWS, dtype=torch.int64)
        by_row = _empty(_ROWS, dtype=torch.float32)
        return lambda: linear_cross_entropy_backward(by_row, x, weight, target, by_row, bias, **options)

    return {
        "plain": forward(_ROWS),
        "few rows": forward(_FEW_ROWS),
        "every option": forward(_ROWS, bias, **options),
        "backward": backward(),
        "every option backward": backward(bias, **options),
    }


_CALLS = {
    "add_norm": _add_norm,
    "linear": _linear,
    "feed_forward": _feed_forward,
    "linear_cross_entropy": _linear_cross_entropy,
}


def _case(op: str, name: str, dtype: str, each: launch.Launch) -> AuditCase:
    signature, constexprs, divisible = specialization(each.kernel, each.arguments)
    dots, bytes_loaded = _iteration(each, _DTYPES[dtype].itemsize)
    iterations = each.arguments["depth"] // each.arguments["BLOCKS"].K if dots else None
    return AuditCase(
        op,
        f"{each.kernel.__name__.removesuffix('_kernel')} ({name})",
        each.kernel,
        signature,
        constexprs,
        divisible,
        each.num_warps,
        each.num_stages,
        dtype,
        max_registers=each.max_registers,
        dots=dots,
        bytes_loaded=bytes_loaded,
        readers=each.arguments["BLOCKS"].GROUP_M if dots else 1,
        iterations=iterations,
    )


def _iteration(each: launch.Launch, itemsize: int) -> tuple[tuple[tuple[int, int, int], ...], int]:
    """The products of one iteration of the kernel's inner loop, and the bytes that it loads."""
    blocks = each.arguments.get("BLOCKS")
    if blocks is None:
        return (), 0
    product = (blocks.M, blocks.N, blocks.K)
    left, right = blocks.M * blocks.K * itemsize, blocks.K * blocks.N * itemsize
    if "gate_weight" in each.arguments:
        return (product, product), left + 2 * right
    derivative = "preactivation" in each.arguments and each.kernel.__name__.startswith("grad_")
    left *= 2 if derivative and each.arguments["preactivation"].data is not None else 1
    if each.arguments.get("grad_bias") is not None and itemsize == 2:  # whose sums are a product with ones
        return (product, (blocks.M, ONES.value, blocks.K)), left + right
    return (product,), left + right
