"""The CUDA kernels with the launches that their host code makes for large problems.

Kernels are templates, compiled for every size: what a launch chooses is the instance, warps and shared memory. The
choices of csrc/cuda are repeated here, and the PTX emulator's tests hold the two against each other.
"""

import math
from dataclasses import dataclass

from .architectures import BY_CAPABILITY, Architecture

HEAD_DIMS = (64, 128, 256)
LARGEST_TF32 = 128  # head size on tensor cores
MORE_HEAD_DIMS = (32, 96, 192)
# As mangled names have them.
_TYPES = {"fp32": "f", "bf16": "13__nv_bfloat16", "fp16": "6__half", "tf32": "NS0_4tf32E", "int8": "a"}
_WARP_ROWS = 16
DECODE_WARPS = 4


@dataclass(frozen=True)
class CudaCase:
    """One instance of a kernel with its launch.

    source: of csrc/cuda, without suffix. kernel: a regular expression that finds the one mangled name.
    dots, exps, bytes_loaded, readers, bytes_alone, iterations, inner_products: as in triton/audit_case.py.
    """

    op: str
    name: str
    source: str
    kernel: str
    num_warps: int
    dtype: str
    shared_bytes: int = 0  # dynamic
    head_dim: int | None = None
    dots: tuple[tuple[int, int, int], ...] = ()
    exps: int = 0
    bytes_loaded: int = 0
    readers: int = 8
    bytes_alone: int = 0
    iterations: int | None = None
    inner_products: int = 0


def audit_cases(capability: int, every: bool = False) -> list[CudaCase]:
    """The kernels as they are launched on an architecture (80 is sm_80). every: also in fp16 where there is bf16, at
    head sizes that pad others, and kernels whose code hardly differs from another's. TF32 from sm_80 on."""
    architecture = BY_CAPABILITY[capability]
    halves = ("fp16",) if capability < 80 else ("bf16", "fp16") if every else ("bf16",)
    cases = []
    for dtype in halves:
        for head_dim in (*HEAD_DIMS, *(MORE_HEAD_DIMS if every else ())):
            cases += _attention(architecture, capability, dtype, head_dim)
        cases += _products(capability, dtype)
    if capability >= 80:
        for head_dim in (*HEAD_DIMS, *(MORE_HEAD_DIMS if every else ())):
            cases += _attention(architecture, capability, "tf32", head_dim) if head_dim <= LARGEST_TF32 else []
        cases += _products(capability, "tf32")
    for dtype in ("fp32", *halves):
        cases += _without_products(dtype)
        cases += _decode(dtype)
    return cases + _plain()


def _attention(architecture: Architecture, capability: int, dtype: str, head_dim: int) -> list[CudaCase]:
    """Forward and backward, causal; `options`: the kernels for any of softcap, ALiBi, mask and dropout."""
    cases = []
    for plain in (True, False):
        warps, shared = forward_launch(head_dim, capability, architecture.block_shared_bytes, dtype)
        rows, keys = warps * _WARP_ROWS, _tile_keys(head_dim, dtype)
        dots = (rows, keys, head_dim), (rows, head_dim, keys)
        launch = warps, shared, rows * keys, keys
        cases.append(
            _attention_case("forward", "forward", "attention_kernel", "", plain, dtype, head_dim, dots, launch)
        )
        if head_dim <= 128 or not plain:  # larger heads have no backward kernel of their own for plain scores
            cases += _backward(architecture, plain, dtype, head_dim)
    return cases


def _backward(architecture: Architecture, plain: bool, dtype: str, head_dim: int) -> list[CudaCase]:
    warps, shared = gradient_launch(head_dim, plain, architecture.block_shared_bytes, dtype)
    own = warps * _WARP_ROWS
    names = [("grad_query", "")]
    if head_dim <= 128:
        names.append(("grad_key_value", "Lb1ELb1E"))
    else:  # the sums of both do not fit into registers
        names += [("grad_key", "Lb1ELb0E"), ("grad_value", "Lb0ELb1E")]
    cases = []
    for name, template in names:
        passing = _passing_rows(head_dim, plain, dtype)
        if (name, head_dim, architecture.name) == ("grad_key_value", 128, "sm_75"):
            passing = _WARP_ROWS  # of the rows that shared memory has room for
        scores, sums = (own, passing, head_dim), (own, head_dim, passing)
        dots = {
            "grad_query": (scores, scores, sums),
            "grad_key_value": (scores, scores, sums, sums),
            "grad_key": (scores, scores, sums),
            "grad_value": (scores, sums),
        }[name]
        which = "query" if name == "grad_query" else "key"
        launch = warps, shared, own * passing, passing
        kernel = f"grad_{which}_kernel"
        each = _attention_case(name, f"backward_{which}", kernel, template, plain, dtype, head_dim, dots, launch)
        cases.append(each)
    return cases


def _attention_case(name: str, source: str, kernel: str, template: str, plain: bool, dtype: str, head_dim: int,
                    dots: tuple, launch: tuple[int, int, int, int]) -> CudaCase:  # fmt: skip
    """template: mangled arguments behind the type, head size and `plain`. launch: warps, shared memory, exponentials of
    an iteration, and the rows of two matrices that it loads."""
    warps, shared, exps, loaded = launch
    instance = f"{kernel}I{_TYPES[dtype]}Li{head_dim}ELb{int(plain)}E{template}E"
    return CudaCase(
        "attention",
        f"{name} {'causal' if plain else 'options'} d{head_dim}",
        f"attention_{source}",
        rf"\d{instance}",
        warps,
        dtype,
        shared_bytes=shared,
        head_dim=head_dim,
        dots=dots,
        exps=exps,
        bytes_loaded=2 * _item_bytes(dtype) * loaded * head_dim,
    )


def _item_bytes(dtype: str) -> int:
    return {"fp32": 4, "tf32": 4, "int8": 1}.get(dtype, 2)


def _tile_keys(head_dim: int, dtype: str) -> int:
    return (64 if head_dim > 128 else 128) // _item_bytes(dtype)


def forward_launch(head_dim: int, capability: int, shared_bytes: int, dtype: str = "fp16") -> tuple[int, int]:
    """(warps, dynamic shared memory) of attention's forward kernel where tiles are full and fill the device.
    shared_bytes: what a block may have."""

    def needed(warps: int, stages: int) -> int:
        return _item_bytes(dtype) * head_dim * (warps * _WARP_ROWS + stages * _tile_keys(head_dim, dtype))

    warps = 8 if head_dim in (32, 96, 128) and needed(8, 2) <= shared_bytes else 4
    stages = 3 if capability >= 80 and needed(warps, 3) <= shared_bytes else 2
    return warps, needed(warps, stages)


def _passing_rows(head_dim: int, plain: bool, dtype: str) -> int:
    rows = 64 if head_dim <= 64 else 32 if head_dim <= 128 else 16
    return max(rows * 2 // _item_bytes(dtype) // (1 if plain else 2), 16)


def gradient_launch(head_dim: int, plain: bool, shared_bytes: int, dtype: str = "fp16") -> tuple[int, int]:
    """The same of its backward kernels."""

    def needed(warps: int) -> int:
        passing = _passing_rows(head_dim, plain, dtype)
        return 2 * _item_bytes(dtype) * head_dim * (warps * _WARP_ROWS + 2 * passing)

    warps = 4 if needed(4) <= shared_bytes else 2
    return warps, needed(warps)


# Of a tile of c: rows, columns, those of a warp, products that share the left operand.
LARGE, SMALL, GATED = (128, 128, 64, 32, 1), (64, 64, 32, 32, 1), (128, 64, 32, 32, 2)
_DEPTH_BYTES, _WIDTH = 64, 4096
_ALONG = {"depth": 0, "rows": 1}


def _products(capability: int, dtype: str) -> list[CudaCase]:
    """The matrix products of linear, feed_forward and linear_cross_entropy."""

    def case(op: str, name: str, shape: tuple, left: str, right: str, epilogue: str) -> CudaCase:
        rows, columns, _, _, rights = shape
        warps, shared = product_launch(shape, capability)
        sizes = "".join(f"Li{size}E" for size in shape)
        inside = rf"\w*?InsideE{_ALONG[left]}ELS\d*_{_ALONG[right]}E"
        loops = dtype == "tf32" or capability < 80  # over the two steps of a slice
        depth_bytes = _DEPTH_BYTES // 2 if loops else _DEPTH_BYTES
        depth = depth_bytes // _item_bytes(dtype)
        kernel = rf"gemm_kernelI{_TYPES[dtype]}L{inside}NS0_9GemmShapeI{sizes}EENS0_\d+{epilogue}I"
        return CudaCase(op, name, "matrix_product", kernel, warps, dtype, shared_bytes=shared,
                        dots=((rows, columns, depth),) * rights, bytes_loaded=depth_bytes * (rows + rights * columns),
                        iterations=_WIDTH // depth)  # fmt: skip

    return [
        case("linear", "linear", LARGE, "depth", "depth", "Epilogue"),
        case("linear", "linear (few rows)", SMALL, "depth", "depth", "Epilogue"),
        case("linear", "grad_input", LARGE, "depth", "rows", "Epilogue"),
        case("linear", "grad_weight", LARGE, "rows", "rows", "Epilogue"),
        case("feed_forward", "gated_hidden", GATED, "depth", "depth", "GatedEpilogue"),
        case("feed_forward", "grad_hidden", LARGE, "depth", "rows", "GradientEpilogue"),
        case("linear_cross_entropy", "cross_entropy_parts", LARGE, "depth", "depth", "PartEpilogue"),
        case("linear_cross_entropy", "logits_gradient", LARGE, "depth", "depth", "LogitsGradientEpilogue"),
        case("linear_cross_entropy", "grad_hidden of the loss", LARGE, "depth", "rows", "SumEpilogue"),
        case("linear_cross_entropy", "grad_weight of the loss", LARGE, "rows", "rows", "SumEpilogue"),
    ]


def product_launch(shape: tuple[int, int, int, int, int], capability: int) -> tuple[int, int]:
    """(warps, dynamic shared memory) of a matrix product with tiles of this shape."""
    rows, columns, warp_rows, warp_columns, rights = shape
    warps = rows // warp_rows * (columns // warp_columns)
    ring = (3 if capability >= 80 else 2) * _DEPTH_BYTES * (rows + rights * columns)
    return warps, max(ring, 4 * rights * warps * _WARP_ROWS * warp_columns)


def _without_products(dtype: str) -> list[CudaCase]:
    """Kernels that memory bounds: rotary, and add_norm for rows that a whole block takes, in 16 bits also of a warp."""
    chunk = 16 // (4 if dtype == "fp32" else 2)
    sizes = ((4096, 256),) if dtype == "fp32" else ((1024, 32), (4096, 256))
    passes = (
        ("add_norm", "forward", "15add_norm_kernel"),
        ("add_norm_backward", "backward", "24add_norm_backward_kernel"),
    )
    rotary = [
        CudaCase("rotary", f"rotary ({name})", "rotary", rf"rotary_kernelI{_TYPES[dtype]}Lb{interleaved}ELi{chunk}EE",
                 8, dtype)
        for interleaved, name in enumerate(("halves", "interleaved"))
    ]  # fmt: skip
    return rotary + [
        CudaCase(
            "add_norm",
            f"{name} ({width})",
            f"add_norm_{source}",
            rf"{kernel}I{_TYPES[dtype]}Li{threads}ELi{chunk}EE",
            8,
            dtype,
        )
        for name, source, kernel in passes
        for width, threads in sizes
    ]


def _decode(dtype: str) -> list[CudaCase]:
    """attention_decode over a cache of this dtype, or of int8, and what writes the new keys to one. With tensor cores
    sixteen rows, the query heads of a group; without them, in fp32 and of operands of different types, four or eight.
    The head size is a number of the launch."""
    own = _TYPES[dtype]
    plain = (("fp32", 4), ("fp32", 8), ("int8", 4)) if dtype == "fp32" else ((dtype, 4), (dtype, 8))
    tiles = () if dtype == "fp32" else ((dtype, (64, 128, 256)), ("int8", (128, 256)))
    return [
        *(_decode_tiles(dtype, cache, head_dim) for cache, head_dims in tiles for head_dim in head_dims),
        *(
            _decode_case(
                f"{cache} cache, {rows} rows",
                "attention_decode_plain",
                rf"plain_decode_kernelI{_TYPES[cache]}Li{rows}ELb1E",
                dtype,
                shared_bytes=plain_decode_shared_bytes(cache, rows, 128),
            )
            for cache, rows in plain
        ),
        _decode_case(
            f"append, {dtype} cache", "attention_decode_append", rf"append_kernelI{own}(?:{own}|S\d*_)E", dtype
        ),
        _decode_case("append, int8 cache", "attention_decode_append", rf"append_kernelI{own}aE", dtype),
    ]


def _decode_case(name: str, source: str, kernel: str, dtype: str, head_dim: int = 128, **more) -> CudaCase:
    name = f"{name} (d{head_dim})"
    return CudaCase("attention_decode", name, source, kernel, DECODE_WARPS, dtype, head_dim=head_dim, **more)


def _decode_tiles(dtype: str, cache: str, head_dim: int) -> CudaCase:
    """Each warp has keys of its own, so that a block's tile is as many times sixteen rows. Blocks that share an output
    of more than 128 columns all read the keys."""
    own, rows, keys, width = _TYPES[dtype], DECODE_WARPS * _WARP_ROWS, 32, min(head_dim, 128)
    element = _TYPES[cache] if cache == "int8" else rf"(?:{own}|S\d*_)"
    scores = rows, keys, head_dim
    return _decode_case(
        f"{cache} cache",
        "attention_decode",
        rf"\dattention_decode_kernelI{own}{element}Li{width}E",
        dtype,
        head_dim,
        shared_bytes=decode_shared_bytes(cache, head_dim),
        dots=(scores, (rows, width, keys)),
        exps=rows * keys,
        bytes_alone=_item_bytes(cache) * DECODE_WARPS * keys * (head_dim + width),
        inner_products=math.prod(scores),
    )


def decode_shared_bytes(cache: str, head_dim: int) -> int:
    """Dynamic shared memory with tensor cores: queries, in the end the output of each warp."""
    width = 64 if head_dim <= 64 and cache != "int8" else 128
    return max(2 * _WARP_ROWS * -(-head_dim // 64) * 64, 4 * DECODE_WARPS * _WARP_ROWS * width)


def plain_decode_shared_bytes(cache: str, rows: int, head_dim: int) -> int:
    """The same without tensor cores: queries and scores, or in the end the output of each warp."""
    chunk = 16 // _item_bytes(cache)
    pitch = -(-head_dim // (8 * chunk)) * 8 * chunk
    lanes = next(lanes for lanes in (1, 2, 4, 8, 16, 32) if lanes == 32 or lanes * chunk >= head_dim)
    width = lanes * chunk * (2 if cache == "fp32" else 1)
    return 4 * rows * max(pitch + DECODE_WARPS * 32, DECODE_WARPS * width)


def _plain() -> list[CudaCase]:
    """True fp32, without tensor cores: tiles of 64 x 64 and 16 of the depth, which is what an iteration multiplies."""
    tile, depth = 64, 16
    common = {"num_warps": 8, "dtype": "fp32", "dots": ((tile, tile, depth),), "bytes_loaded": 8 * tile * depth}
    product = r"plain_gemm_kernelILb{}ELb{}ENS0_\d+EpilogueIfE"
    cases = [
        CudaCase("linear", name, "matrix_product", product.format(*inside), iterations=_WIDTH // depth, **common)
        for name, inside in (("linear", (1, 1)), ("grad_input", (1, 0)), ("grad_weight", (0, 0)))
    ]
    attention = (
        ("attention", "forward d128", "attention_forward_plain", "22plain_attention_kernelIfLi2E"),
        (
            "attention",
            "grad_query, grad_key or grad_value d128",
            "attention_backward_plain",
            "21plain_gradient_kernelIfLi2E",
        ),
        ("attention_weights", "weights d128", "attention_weights_forward", "24attention_weights_kernelIfE"),
    )
    return cases + [CudaCase(*each, head_dim=128, **common) for each in attention]
