"""The launches worth a measurement: those that fit a block's shared memory and a thread's registers, by estimate.

The estimates are rough and err on the generous side: what does not fit after all is refused by the compiler or the
driver, and what spills registers loses by its time.
"""

from collections.abc import Iterator
from itertools import product

from ..triton import attention_launch
from ..triton.launch import ProductLaunch
from .device import Limits

_ITEM_BYTES = {"half": 2, "tf32": 4, "ieee": 4}
_WARPS = (4, 8)
# fp32 sums that a thread may hold. Products without tensor cores need more registers for their factors.
_PRODUCT_SUMS = {True: (16, 128), False: (8, 64)}
_ATTENTION_SUMS = {True: 160, False: 40}


def candidates(name: str, arithmetic: str, features: int | None, limits: Limits) -> list:
    """Launches for a pass of attention with so many (padded) features, or for a kind of product: those are for any
    sizes, and features is None. arithmetic: "half", "tf32" or "ieee"."""
    tensor_cores = arithmetic != "ieee" and limits.capability >= 80
    if name in attention_launch.PASSES:
        return list(_attention(name, arithmetic, features, tensor_cores, limits))
    return list(_products(name, arithmetic, tensor_cores, limits))


def _buffers(stages: int, limits: Limits) -> int:
    """How many tiles of each operand lie in shared memory: sm_90 and sm_100 multiply from there, so that the tile in
    use keeps its place; elsewhere it moves on to registers. Read from what Triton 3.9 compiles for each of them."""
    return stages if 90 <= limits.capability < 120 else max(stages - 1, 1)


def _products(kind: str, arithmetic: str, tensor_cores: bool, limits: Limits) -> Iterator[ProductLaunch]:
    sides = (64, 128, 256) if tensor_cores else (32, 64, 128)
    wide = 64 if arithmetic == "half" else 32
    # (terms at a time, tiles ahead): what is loaded ahead comes to similar sizes.
    depths = [(wide // 2, stages) for stages in (3, 4, 5)] + [(wide, stages) for stages in (2, 3, 4)]
    if not tensor_cores:
        depths = [(block_k, stages) for block_k in (8, 16, 32) for stages in (2, 3)]
    accumulators = 2 if kind == "pair" else 1
    fewest, most = _PRODUCT_SUMS[tensor_cores]
    for block_m, block_n, (block_k, stages), warps in product(sides, sides, depths, _WARPS):
        shared = _buffers(stages, limits) * block_k * (block_m + accumulators * block_n) * _ITEM_BYTES[arithmetic]
        sums = accumulators * block_m * block_n // (32 * warps)
        if shared <= limits.shared_bytes and fewest <= sums <= most:
            yield ProductLaunch(block_m, block_n, block_k, warps, stages)


def _attention(
    name: str, arithmetic: str, features: int, tensor_cores: bool, limits: Limits
) -> Iterator[attention_launch.Launch]:
    sides = (16, 32, 64, 128) if tensor_cores else (8, 16, 32, 64)
    for m, n, warps, stages in product(sides, sides, _WARPS, (1, 2, 3, 4) if tensor_cores else (1,)):
        # Sums in registers, rows loaded once per block, rows loaded per iteration.
        sums, kept, streamed = {
            "forward": (m * (features + n), m, 2 * n),
            "grad_key_value": (2 * n * features + 2 * m * n, 2 * n, 2 * m),
            "grad_query": (m * features + 2 * m * n, 2 * m, 2 * n),
            "grad_mask": (3 * m * n, 0, 2 * (m + n)),
            "weights": (2 * m * n, 0, m + n),
        }[name]
        shared = (kept + _buffers(stages, limits) * streamed) * features * _ITEM_BYTES[arithmetic]
        if sums > _ATTENTION_SUMS[tensor_cores] * 32 * warps or (tensor_cores and shared > limits.shared_bytes):
            continue
        yield attention_launch.Launch(m, n, warps, stages)
