"""`bigmodel audit` repeats how host code launches the CUDA kernels: the launches that the emulator sees are those."""

import re
from dataclasses import replace

import pytest
import tf32
import torch

from bigmodel_kernels.audit import cuda_cases
from bigmodel_kernels.audit.architectures import BY_CAPABILITY
from bigmodel_kernels.testing import ATTENTION_CASES, FEED_FORWARD_CASES, LINEAR_CASES, AttentionDecodeCase
from tests.ptx_emulator import building

if building.nvcc() is None:
    pytest.skip(building.NO_NVCC, allow_module_level=True)

from tests.ptx_emulator import emulated

CAPABILITIES = (75, 80, 86)  # of which the shared memory differs
(CAUSAL,) = (case for case in ATTENTION_CASES if case.name == "causal")
SIZES = (*cuda_cases.HEAD_DIMS, *cuda_cases.MORE_HEAD_DIMS)


def launches(
    case, capability: int, multiprocessors: int, backward: bool = False, dtype: torch.dtype = torch.float16
) -> dict[str, tuple[int, int]]:
    """(warps, dynamic shared memory) by kernel, of a case on such a device. fp32 as TF32."""
    version = divmod(capability, 10)
    with emulated.cuda_backend(version) as emulator:
        shared = BY_CAPABILITY[capability].block_shared_bytes
        emulator.device(version, multiprocessors=multiprocessors, shared_bytes=shared)
        emulator.counters()
        inputs = case.inputs(dtype)
        leaves = {name: x if x is None else x.detach().requires_grad_(backward) for name, x in inputs.items()}
        with tf32.allowed():
            outputs = list(case.run(leaves, "cuda").values())
            if backward:
                outputs[0].sum().backward()
        emulator.check()
        found = emulator.counters()
        emulator.device()
    return {without_namespaces(name): (each["threads"] // 32, each["shared_bytes"]) for name, each in found.items()}


def without_namespaces(name: str) -> str:
    """A kernel's name and template arguments."""
    return re.sub(r"(?:\w+|\([^()]*\)|<unnamed>)::", "", name).removeprefix("void ")


@pytest.mark.parametrize("head_dim", SIZES)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_attention(capability, head_dim):
    case = replace(CAUSAL, batch=1, heads=1, kv_heads=1, q_len=130, kv_len=130, head_dim=head_dim)
    found = launches(case, capability, 1, backward=True)
    shared = BY_CAPABILITY[capability].block_shared_bytes
    plain = "true" if head_dim <= 128 else "false"
    forward = found[f"attention_kernel<__half, {head_dim}, true>"]
    assert forward == cuda_cases.forward_launch(head_dim, capability, shared)
    of_gradients = {launch for name, launch in found.items() if name.startswith("grad_") and f", {plain}" in name}
    assert of_gradients == {cuda_cases.gradient_launch(head_dim, head_dim <= 128, shared)}, found


@pytest.mark.parametrize("head_dim", [size for size in SIZES if size <= cuda_cases.LARGEST_TF32])
@pytest.mark.parametrize("capability", CAPABILITIES[1:])
def test_attention_in_tf32(capability, head_dim):
    case = replace(CAUSAL, batch=1, heads=1, kv_heads=1, q_len=130, kv_len=130, head_dim=head_dim)
    found = launches(case, capability, 1, backward=True, dtype=torch.float32)
    shared = BY_CAPABILITY[capability].block_shared_bytes
    forward = found[f"attention_kernel<tf32, {head_dim}, true>"]
    assert forward == cuda_cases.forward_launch(head_dim, capability, shared, "tf32")
    of_gradients = {launch for name, launch in found.items() if name.startswith("grad_")}
    assert of_gradients == {cuda_cases.gradient_launch(head_dim, True, shared, "tf32")}, found


CACHES = {"fp32": (torch.float32, "float"), "fp16": (None, "__half"), "int8": (torch.int8, "signed char")}


@pytest.mark.parametrize("head_dim", [64, 128, 256, 1104])
@pytest.mark.parametrize("cache", CACHES)
def test_decode(cache, head_dim):
    cache_dtype, kernel = CACHES[cache]
    for rows in (4,) if cache == "int8" else (4, 8):
        case = AttentionDecodeCase("step", heads=rows, kv_heads=1, head_dim=head_dim, cache_dtype=cache_dtype)
        if cache == "fp32":
            name = f"plain_decode_kernel<{kernel}, {rows}, true>"
            shared = cuda_cases.plain_decode_shared_bytes(cache, rows, head_dim)
        else:
            width = 64 if head_dim == 64 and cache == "fp16" else 128
            name = f"attention_decode_kernel<__half, {kernel}, {width}>"
            shared = cuda_cases.decode_shared_bytes(cache, head_dim)
        assert launches(case, 80, 108)[name] == (cuda_cases.DECODE_WARPS, shared)


@pytest.mark.parametrize("capability, dtype", [(75, torch.float16), (80, torch.float16), (80, torch.float32)])
def test_products(capability, dtype):
    """Of each shape of tiles that the audit knows, and no other."""
    (linear,) = (case for case in LINEAR_CASES if case.name == "130x100x70")
    (gated,) = (case for case in FEED_FORWARD_CASES if case.name == "silu_hidden")
    shapes = {"128, 128, 64, 32, 1": cuda_cases.LARGE, "64, 64, 32, 32, 1": cuda_cases.SMALL,
              "128, 64, 32, 32, 2": cuda_cases.GATED}  # fmt: skip
    found = {}
    for case, multiprocessors in ((linear, 1), (linear, 108), (gated, 1)):
        found |= launches(case, capability, multiprocessors, dtype=dtype)
    products = {name: launch for name, launch in found.items() if "GemmShape" in name}
    seen = set()
    for name, launch in products.items():
        ((sizes, shape),) = ((sizes, shape) for sizes, shape in shapes.items() if f"GemmShape<{sizes}>" in name)
        assert launch == cuda_cases.product_launch(shape, capability), name
        seen.add(sizes)
    assert seen == set(shapes), products
