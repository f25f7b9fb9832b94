"""What the cases of the ops do not reach in the Triton backend: 64-bit offsets, the widest rows, tables of launches."""

import itertools

import pytest
import torch

import bigmodel_kernels as bmk
from bigmodel_kernels.testing import FORWARD, GRADIENT, assert_as_exact

pytest.importorskip("triton")
if bmk.info()["backends"]["triton"]:
    pytest.skip("; ".join(bmk.info()["backends"]["triton"]), allow_module_level=True)

from op_check import device_of

from bigmodel_kernels.triton import launch
from bigmodel_kernels.triton.add_norm import add_norm
from bigmodel_kernels.triton.add_norm_backward import add_norm_backward
from bigmodel_kernels.triton.launch import ProductLaunch
from bigmodel_kernels.triton.matrices import matrix
from bigmodel_kernels.triton.product import plan

DEVICE = torch.device(device_of("triton"))


def far_apart(rows: int, columns: int) -> torch.Tensor:
    """A matrix whose rows lie 2^25 elements apart: a block of 64 of them spans more than 32 bits."""
    storage = torch.empty((rows - 1) * 2**25 + columns, dtype=torch.float16, device=DEVICE)
    x = storage.as_strided((rows, columns), (2**25, 1))
    return x.copy_(torch.randn(rows, columns))


def test_offsets_of_64_bits():
    x, weight = far_apart(3, 40), far_apart(2, 40)
    how = plan("plain", x.dtype, x.device, 3, 2, 40, matrix(x), matrix(weight))
    assert how.blocks.WIDE
    wide = bmk.linear(x, weight, activation="silu", backend="triton")
    assert torch.equal(wide, bmk.linear(x.clone(), weight.clone(), activation="silu", backend="triton"))


APART = 2**26  # 40 rows of a tile, so far apart, span more than 2^31 elements


def far_rows(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors, of one batch and one head, with rows that lie APART. They share one storage, side by side, of which
    only what they occupy is ever touched: the system lends memory for nothing else."""
    rows = max(x.shape[2] for x in tensors)
    width = sum(x.shape[3] for x in tensors)
    storage = torch.empty((rows - 1) * APART + width, dtype=tensors[0].dtype, device=DEVICE)
    placed, start = [], 0
    for x in tensors:
        far = storage.as_strided(x.shape, (1, 1, APART, 1), start)
        placed.append(far.copy_(x))
        start += x.shape[3]
    return placed


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_linear_with_a_bias_of_enormous_stride(activation):
    """More than 2^31 elements from its first to its last: only what it occupies is ever touched."""
    generator = torch.Generator().manual_seed(0)
    x, weight, near = (torch.randn(*size, generator=generator).half().to(DEVICE) for size in ((3, 5), (70, 5), (70,)))
    step = 2**31 // 64
    storage = torch.empty(69 * step + 1, dtype=torch.float16, device=DEVICE)
    far = storage.as_strided((70,), (step,)).copy_(near)
    expected = bmk.linear(x, weight, near, activation=activation, backend="triton")
    assert torch.equal(bmk.linear(x, weight, far, activation=activation, backend="triton"), expected)


def attention_and_gradients(tensors, grad, options, backend="triton"):
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in tensors]
    names = ("query", "key", "value", "mask")[: len(leaves)]
    output = bmk.attention(**dict(zip(names, leaves, strict=True)), **options, backend=backend)
    wanted = [x for x in leaves if x.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, wanted, grad)]


@pytest.mark.parametrize("far", ["all", "grad_output", "mask_columns"])
def test_attention_with_offsets_of_64_bits(far, monkeypatch):
    """Forward and backward: where the elements lie changes no bit of the result."""
    from bigmodel_kernels.triton import attention_launch
    from bigmodel_kernels.triton.attention_inputs import needs_wide, view

    # Tiles of all rows at once, so that offsets inside of them need more than 31 bits in every pass.
    def whole(*arguments, **options):
        return attention_launch.Launch(64, 64, 4, 1)

    for module in ("attention_forward", "attention_backward"):
        monkeypatch.setattr(f"bigmodel_kernels.triton.{module}.attention_launch", whole)
    generator = torch.Generator().manual_seed(0)
    query, key, value, grad = (
        torch.randn(1, 1, 40, size, generator=generator).half().to(DEVICE) for size in (16, 16, 24, 24)
    )
    mask = torch.randn(1, 1, 40, 40, generator=generator).half().to(DEVICE)
    expected = attention_and_gradients([query, key, value, mask], grad, {"causal": "bottom_right"})
    reference = attention_and_gradients([query, key, value, mask], grad, {"causal": "bottom_right"}, "reference")
    for ours, theirs in zip(expected, reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    if far == "all":
        query, key, value, mask = far_rows(query, key, value, mask)
    elif far == "grad_output":
        (grad,) = far_rows(grad)
    else:
        (mask,) = (x.mT for x in far_rows(mask.mT.contiguous()))
    assert any(needs_wide(view(x), 40) for x in (query, key, value, grad, mask))
    found = attention_and_gradients([query, key, value, mask], grad, {"causal": "bottom_right"})
    for ours, near in zip(found, expected, strict=True):
        assert torch.equal(ours, near)


@pytest.mark.parametrize("width", [40, 260], ids=["whole rows", "chunks"])
def test_add_norm_of_columns_far_apart(width):
    """More than 2^31 elements from the first column to the last, of all that is read, forward and backward."""
    step = 2**31 // (width - 2)
    storage = torch.empty((width - 1) * step + 32, dtype=torch.float16, device=DEVICE)
    starts = itertools.count(0, 3)  # side by side in one storage, of which little is ever touched

    def far(x: torch.Tensor) -> torch.Tensor:
        strides = (*(1 for _ in x.shape[1:]), step)
        return storage.as_strided(x.shape, strides, next(starts)).copy_(x)

    generator = torch.Generator().manual_seed(0)
    x, residual, grad, grad_sum = (torch.randn(3, width, generator=generator).half().to(DEVICE) for _ in range(4))
    weight, bias = (torch.randn(width, generator=generator).half().to(DEVICE) for _ in range(2))
    near = add_norm(x, residual, weight, bias)
    apart = add_norm(far(x), far(residual), far(weight), far(bias))
    total, _, mean, rstd = near
    near += add_norm_backward(grad, grad_sum, total, weight, mean, rstd)
    apart += add_norm_backward(far(grad), far(grad_sum), far(total), far(weight), mean, rstd)
    assert len(near) == 7
    for ours, expected in zip(apart, near, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_widest_rows(kind):
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(5, 65536, generator=generator).to(DEVICE) for _ in range(2))
    weight = torch.randn(65536, generator=generator).to(DEVICE)
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        tensors = [each.detach().to(dtype).requires_grad_() for each in (x, weight)]
        _, normed = bmk.add_norm(tensors[0], None, tensors[1], kind=kind, backend=backend)
        results.append([normed, *torch.autograd.grad(normed, tensors, grad.to(dtype))])
    for name, ours, reference, truth in zip(("normed", "x", "weight"), *results, strict=True):
        factor = FORWARD if name == "normed" else GRADIENT
        assert_as_exact(name, ours, reference, truth, factor, torch.float32)


@pytest.mark.parametrize("capability", sorted(launch.FAMILIES))
@pytest.mark.parametrize("arithmetic", ["half", "ieee", "tf32"])
def test_every_table_has_every_kind(capability, arithmetic):
    for kind in ("plain", "epilogue", "gradient", "derivative", "pair"):
        launches = launch.product_launches(capability, kind, arithmetic)
        sizes = [each.block_m * each.block_n for each in launches]
        assert sizes == sorted(sizes, reverse=True), "from large blocks to small"


def test_an_unlisted_architecture_takes_the_last_below_it():
    assert launch.family(103) == launch.family(100) == "sm_100"
    assert launch.family(121) == launch.family(120)
    assert launch.family(88) == "sm_86"


def test_a_group_of_multiprocessors_chooses_the_block(monkeypatch):
    """Large blocks where they give every multiprocessor one, small blocks otherwise; a measured choice before both."""
    monkeypatch.setattr(launch.triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(launch, "_overrides", {})
    with launch.recorded(80, 108):
        large = launch.product_launch(DEVICE, "plain", "half", 8192, 8192, 512)
        small = launch.product_launch(DEVICE, "plain", "half", 64, 512, 512)
        assert large.block_m * large.block_n > small.block_m * small.block_n
        chosen = ProductLaunch(16, 16, 16, 1, 1)
        launch.override(80, "plain", "half", 64, 512, 512, chosen)
        assert launch.product_launch(DEVICE, "plain", "half", 60, 500, 400) == chosen
        assert launch.product_launch(DEVICE, "plain", "half", 8192, 8192, 512) == large
