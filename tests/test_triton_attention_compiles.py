"""The attention kernels compile ahead of time, without a GPU, for every architecture: to tensor-core instructions of
the right kind, without spills up to 128 features. A selection; `bigmodel audit` compiles all of them."""

import functools
import os
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="the package triton, which compiles the kernels, is not installed")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set, and interpreted kernels have no machine code", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from bigmodel_kernels.triton.attention_audit import audit_cases  # noqa: E402

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
PASSES = ("forward causal d128", "grad_key_value causal d128", "grad_query causal d128")
# How each architecture's products appear in PTX. Triton multiplies on sm_75 without tensor cores.
PRODUCTS = {75: "fma.rn.f32", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB of shared memory that a block may have
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@functools.cache
def case_named(arch: int, name: str, dtype: str, op: str = "attention"):
    (found,) = [case for case in audit_cases(arch) if (case.op, case.name, case.dtype) == (op, name, dtype)]
    return found


def compiled(case, arch: int):
    alignment = {path: [["tt.divisibility", 16]] for path in case.divisible_by_16}
    source = ASTSource(case.kernel, case.signature, case.constexprs, alignment)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def stack_bytes(cubin: bytes, folder: Path) -> int:
    """Local memory per thread: where spilled registers go."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    usage = subprocess.run(
        [TOOLS / f"cuobjdump{'.exe' if os.name == 'nt' else ''}", "-res-usage", path], capture_output=True, text=True
    )
    return int(re.search(r"STACK:(\d+)", usage.stdout + usage.stderr).group(1))


def check(case, arch: int, folder: Path) -> None:
    kernel = compiled(case, arch)
    product = "fma.rn.f32" if case.dtype == "fp32" else PRODUCTS.get(arch, "mma.sync")
    assert product in kernel.asm["ptx"], f"no {product}"
    assert kernel.metadata.shared <= SHARED[arch] * 1024
    assert stack_bytes(kernel.asm["cubin"], folder) == 0, "registers are spilled"


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_passes(arch, name, tmp_path):
    check(case_named(arch, name, "bf16" if arch >= 80 else "fp16"), arch, tmp_path)


@pytest.mark.parametrize("name", [name.replace("d128", "d64") for name in PASSES])
def test_passes_in_fp32(name, tmp_path):
    check(case_named(80, name, "fp32"), 80, tmp_path)


@pytest.mark.parametrize("name", ["forward one query d64", "grad_mask d128"])
def test_other_launches(name, tmp_path):
    check(case_named(80, name, "fp16"), 80, tmp_path)


def test_kernels_without_products():
    for name in ("merge one query d64", "row_terms d64"):
        compiled(case_named(80, name, "fp16"), 80)


def test_attention_weights(tmp_path):
    check(case_named(80, "weights d128", "fp16", "attention_weights"), 80, tmp_path)
