"""What the default CUDA kernels execute: no bank conflicts, and no more instructions than when they were last tuned."""

import pytest

from tests.ptx_emulator import building

if building.nvcc() is None:
    pytest.skip(building.NO_NVCC, allow_module_level=True)

from tests.ptx_emulator import comparing

# Instructions that warps may issue for each mma, by call and kernel: what was counted (docs/gpu-verification.md),
# rounded up to tenths.
PER_MMA = {
    ("attention forward d64", "attention_kernel"): 10.3,
    ("attention backward d64", "grad_key_kernel"): 7.0,
    ("attention backward d64", "grad_query_kernel"): 6.5,
    ("attention forward causal d64", "attention_kernel"): 12.8,
    ("attention backward causal d64", "grad_key_kernel"): 8.6,
    ("attention backward causal d64", "grad_query_kernel"): 7.7,
    ("attention forward d128", "attention_kernel"): 7.1,
    ("attention backward d128", "grad_key_kernel"): 5.8,
    ("attention backward d128", "grad_query_kernel"): 5.5,
    ("attention forward causal d128", "attention_kernel"): 8.8,
    ("attention backward causal d128", "grad_key_kernel"): 6.9,
    ("attention backward causal d128", "grad_query_kernel"): 6.3,
    ("linear", "gemm_kernel"): 6.2,
    ("feed_forward", "gemm_kernel"): 5.9,
}


@pytest.mark.parametrize("call", comparing.names())
def test_no_bank_conflicts_and_few_instructions(call):
    counted = comparing.counts(call, triton=False)
    assert any(each.mma for each in counted)
    for each in counted:
        assert each.conflicts == 0, each
        if each.mma:
            assert each.per_mma <= PER_MMA[call, each.kernel], each
