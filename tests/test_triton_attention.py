"""What the cases of attention do not reach in the Triton backend: strides of its small arguments, and far offsets."""

import pytest
import torch

import bigmodel_kernels as bmk

pytest.importorskip("triton")
if bmk.info()["backends"]["triton"]:
    pytest.skip("; ".join(bmk.info()["backends"]["triton"]), allow_module_level=True)

from op_check import device_of

from bigmodel_kernels.triton.attention_backward import attention_backward
from bigmodel_kernels.triton.attention_forward import attention

DEVICE = torch.device(device_of("triton"))
HEADS = 2


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


LAYOUTS = {
    "every second": lambda: random(2 * HEADS, seed=5).abs()[::2],
    "one for all heads": lambda: random(1, seed=6).abs().expand(HEADS),
}


@pytest.mark.parametrize("kv_len", [9, 300], ids=["whole", "split keys"])
@pytest.mark.parametrize("name", ["sinks", "alibi_slopes"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_of_heads_that_are_not_side_by_side(layout, name, kv_len):
    """Forward and backward give the bits of a contiguous tensor of the same numbers."""
    query, key, value = random(1, HEADS, 5, 16), random(1, HEADS, kv_len, 16, seed=1), random(1, HEADS, kv_len, 16)
    given = LAYOUTS[layout]()
    results = []
    for each in (given, given.clone(memory_format=torch.contiguous_format)):
        options = {name: each}
        output, lse = attention(query, key, value, **options)
        wanted = (True, True, True, False, name == "sinks")
        results.append(
            [
                output,
                lse,
                *attention_backward(
                    torch.ones_like(output), None, query, key, value, output, lse, **options, output_mask=wanted
                ),
            ]
        )
    assert not given.is_contiguous()
    for ours, expected in zip(*results, strict=True):
        assert torch.equal(ours, expected)
