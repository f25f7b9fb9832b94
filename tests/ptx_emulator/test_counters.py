"""What the default CUDA kernels execute: no bank conflicts, and no more instructions than when they were last tuned."""

import pytest
import torch

from bigmodel_kernels import attention, attention_weights, linear
from tests.ptx_emulator import building

if building.nvcc() is None:
    pytest.skip(building.NO_NVCC, allow_module_level=True)

from tests.ptx_emulator import comparing, emulated

# Instructions that warps may issue for each mma, by call and kernel: what was counted (docs/gpu-verification.md),
# rounded up to tenths.
PER_MMA = {
    ("attention forward d64", "attention_kernel"): 10.3,
    ("attention backward d64", "grad_key_kernel"): 6.9,
    ("attention backward d64", "grad_query_kernel"): 6.4,
    ("attention forward causal d64", "attention_kernel"): 12.8,
    ("attention backward causal d64", "grad_key_kernel"): 8.5,
    ("attention backward causal d64", "grad_query_kernel"): 7.6,
    ("attention forward d128", "attention_kernel"): 7.1,
    ("attention backward d128", "grad_key_kernel"): 5.7,
    ("attention backward d128", "grad_query_kernel"): 5.4,
    ("attention forward causal d128", "attention_kernel"): 8.8,
    ("attention backward causal d128", "grad_key_kernel"): 6.8,
    ("attention backward causal d128", "grad_query_kernel"): 6.2,
    ("linear", "gemm_kernel"): 6.2,
    ("feed_forward", "gemm_kernel"): 6.0,
}


@pytest.mark.parametrize("call", comparing.names())
def test_no_bank_conflicts_and_few_instructions(call):
    counted = comparing.counts(call, triton=False)
    assert any(each.mma for each in counted)
    for each in counted:
        assert each.conflicts == 0, each
        if each.mma:
            assert each.per_mma <= PER_MMA[call, each.kernel], each


def test_no_bank_conflicts_without_tensor_cores():
    """In exact fp32, of products in every orientation and of what one product leaves for the next, in either."""
    with emulated.cuda_backend() as emulator:
        query, key, value = (torch.randn(1, 2, rows, 80, requires_grad=True) for rows in (100, 130, 130))
        mask = torch.randn(1, 2, 100, 130, requires_grad=True)
        x, weight = torch.randn(70, 130, requires_grad=True), torch.randn(100, 130, requires_grad=True)
        emulator.counters()
        output, lse = attention(query, key, value, mask=mask, return_lse=True, backend="cuda")
        weights = attention_weights(query, key, lse, mask=mask, backend="cuda")
        product = linear(x, weight, backend="cuda")
        torch.autograd.grad(
            (output * 2).sum() + weights.square().sum() + product.square().sum(), (query, key, value, mask, x, weight)
        )
        emulator.check()
        counters = emulator.counters()
    plain = ["plain_attention", "plain_gradient", "mask_gradient", "attention_weights", "lse_gradient", "plain_gemm"]
    for kernel in plain:
        assert any(f"{kernel}_kernel" in name for name in counters), kernel
    for name, kernel in counters.items():
        classes = kernel["classes"]
        assert "mma" not in classes
        assert all(each["wavefronts"] == each["ideal_wavefronts"] for each in classes.values()), (name, classes)
