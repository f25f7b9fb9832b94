"""What the tests of all ops do alike with a case: run it with gradients, and hold it against the truth."""

import os
from functools import cache

import pytest
import tf32
import torch

from bigmodel_kernels import backends
from bigmodel_kernels.interpreter import interpreted
from bigmodel_kernels.testing import FORWARD, GRADIENT, AttentionCase, assert_as_exact

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Random cases per test: fewer where Triton's interpreter takes seconds for what a kernel does in microseconds.
INTERPRETED = interpreted()
# What random cases draw from: on a GPU that multiplies no bfloat16 the others only, which the other tests skip there.
ON_GPU = os.environ.get("BIGMODEL_TEST_GPU") == "1" and torch.cuda.is_available()
OLD_GPU = ON_GPU and torch.cuda.get_device_capability() < backends.GPU_BFLOAT16_CAPABILITY
RANDOM_DTYPES = [dtype for dtype in DTYPES if not (OLD_GPU and dtype == torch.bfloat16)]
EXAMPLES = 10 if INTERPRETED else 40
dtype_name = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get


def ops_of(backend: str):
    """The torch.ops namespace in which a backend's kernels are registered."""
    return backends.TRITON_OPS if backend == "triton" else backends.CPU_OPS


def device_of(backend: str) -> str:
    """Triton interprets its kernels, and an emulator runs the CUDA ones (tests/ptx_emulator), on CPU tensors."""
    gpu = not INTERPRETED if backend == "triton" else backend == "cuda" and os.environ.get("BIGMODEL_TEST_GPU") == "1"
    return "cuda" if gpu else "cpu"


def moved(x: torch.Tensor | None, device: str) -> torch.Tensor | None:
    """x on a device in the same memory layout, with what lies before and between its elements; `to` tidies up."""
    if x is None or x.device.type == device:
        return x
    size = x.untyped_storage().nbytes() // x.element_size()
    return x.as_strided((size,), (1,), 0).to(device).as_strided(x.size(), x.stride(), x.storage_offset())


def leaves(inputs: dict) -> dict:
    """The inputs with gradients asked for, strides kept. ALiBi slopes and rotary's angles have no gradient."""
    fixed = ("alibi_slopes", "cos", "sin")
    return {
        name: x.detach().requires_grad_(x.is_floating_point() and name not in fixed) if x is not None else None
        for name, x in inputs.items()
    }


def grad_outputs(outputs: dict, dtype: torch.dtype) -> dict:
    """Random gradients of the outputs: rounded to `dtype`, in each output's own dtype, in another memory order."""
    generator = torch.Generator().manual_seed(1)
    grads = {}
    for name, output in outputs.items():
        grad = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(dtype).to(output.dtype)
        if grad.dim() > 1:
            grad = grad.transpose(-1, -2).contiguous().transpose(-1, -2)
        grads[name] = moved(grad, output.device.type)
    return grads


def run_with_gradients(case, inputs: dict, dtype: torch.dtype, backend: str) -> tuple[dict, dict]:
    """Outputs, and the gradients of every differentiable input."""
    device = device_of(backend)
    inputs = leaves({name: moved(x, device) for name, x in inputs.items()})
    outputs = case.run(inputs, backend)
    wanted = {name: x for name, x in inputs.items() if x is not None and x.requires_grad}
    given = grad_outputs(outputs, dtype)
    before = {name: grad.clone() for name, grad in given.items()}
    grads = torch.autograd.grad(list(outputs.values()), list(wanted.values()), list(given.values()), allow_unused=True)
    for name, grad in given.items():
        assert torch.equal(grad, before[name]), f"the gradient of {name} was written"
    filled = (torch.zeros_like(x) if grad is None else grad for grad, x in zip(grads, wanted.values(), strict=True))
    return {name: x.detach().cpu() for name, x in outputs.items()}, dict(
        zip(wanted, (grad.cpu() for grad in filled), strict=True)
    )


@cache
def expected(case, dtype: torch.dtype) -> tuple:
    """(truth, reference in dtype), each (outputs, gradients). Computed once for all targets."""
    inputs = case.inputs(dtype)
    wide = {name: x.double() if x is not None and x.is_floating_point() else x for name, x in inputs.items()}
    return run_with_gradients(case, wide, dtype, "reference"), run_with_gradients(case, inputs, dtype, "reference")


def skip_what_the_device_lacks(dtype: torch.dtype, backend: str) -> None:
    """With the backend's own reasons: bfloat16 on GPUs before Ampere."""
    if device_of(backend) != "cpu":
        tensor = torch.empty(0, dtype=dtype, device=device_of(backend))
        reasons = backends.unsupported_reasons("attention", backend, (tensor,))
        if reasons:
            pytest.skip("; ".join(reasons))


def check_case(case, dtype: torch.dtype, backend: str) -> None:
    """Outputs and gradients of the case are as near the float64 truth as the tolerance rule asks."""
    skip_what_the_device_lacks(dtype, backend)
    outputs, grads = run_with_gradients(case, case.inputs(dtype), dtype, backend)
    (true_outputs, true_grads), (reference_outputs, reference_grads) = expected(case, dtype)
    for name, output in outputs.items():
        assert_as_exact(name, output, reference_outputs[name], true_outputs[name], FORWARD, dtype)
    for name, grad in grads.items():
        assert_as_exact(f"gradient of {name}", grad, reference_grads[name], true_grads[name], GRADIENT, dtype)


def check_tf32(case, found: tuple[dict, dict]) -> None:
    """Outputs and gradients of a case, found by kernels that multiply float32 in TF32, lose what TF32 loses."""
    with tf32.Products() as products:
        of_torch = run_with_gradients(case, case.inputs(torch.float32), torch.float32, "reference")
    assert products.count > 0
    truth, _ = expected(case, torch.float32)
    # dO V^T sees rounded factors, and rowsum(dO O), which is subtracted from it, does not: plain attention subtracts a
    # sum of dO V^T itself. So attention's floor has TF32's eps, which is float16's, as in other dtypes it has theirs.
    attention = isinstance(getattr(case, "attention", case), AttentionCase)  # or attention_varlen
    floor_of = torch.float16 if attention else torch.float32
    for each, reference, true, factor in zip(found, of_torch, truth, (FORWARD, GRADIENT), strict=True):
        for name, x in each.items():
            assert_as_exact(name, x, reference[name], true[name], factor, floor_of)


def check_repeats(case, dtype: torch.dtype, backend: str) -> None:
    """The same bits again, after other work has used the same memory and threads."""
    skip_what_the_device_lacks(dtype, backend)
    inputs, device = case.inputs(dtype), device_of(backend)
    first = run_with_gradients(case, inputs, dtype, backend)
    for size in (3, 4096):
        torch.randn(size, size % 97 + 1, device=device) @ torch.randn(size % 97 + 1, 50, device=device)
        second = run_with_gradients(case, inputs, dtype, backend)
        for before, after in zip(first, second, strict=True):
            for name in before:
                assert torch.equal(before[name], after[name]), f"{name} differs between two runs"
