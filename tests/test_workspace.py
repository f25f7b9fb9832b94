"""The memory that CPU kernels work in is kept from call to call: one piece, up to 64 MiB, until it is given back."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import bigmodel_kernels as bmk

MEBIBYTE = 1 << 20


def layer(rows: int, width: int, hidden: int):
    """A feed-forward layer's inputs; with gradients wanted nothing of it is packed ahead."""
    generator = torch.Generator().manual_seed(rows)
    shapes = (rows, width), (hidden, width), (hidden,), (width, hidden), (width,)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def largest_allocation(call) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    return max(event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")


@pytest.fixture(autouse=True)
def nothing_kept():
    bmk.release_workspace()
    yield
    bmk.release_workspace()


def test_kept_until_released():
    inputs = layer(256, 256, 2048)
    call = lambda: bmk.feed_forward(*inputs)  # noqa: E731
    hidden_bytes = 256 * 2048 * 4
    first, second = largest_allocation(call), largest_allocation(call)
    assert second <= hidden_bytes < first, "the second call found the first one's workspace"
    bmk.release_workspace()
    assert largest_allocation(call) == first


def test_smaller_call_takes_the_larger_workspace():
    large, small = layer(256, 256, 2048), layer(256, 256, 1024)
    alone = largest_allocation(lambda: bmk.feed_forward(*small))
    bmk.feed_forward(*large)
    assert largest_allocation(lambda: bmk.feed_forward(*small)) < alone


def test_more_than_64_mebibytes_are_not_kept():
    inputs = layer(1280, 16, 16384)  # backward leaves two matrices of [rows, hidden], 80 MiB each, in its workspace
    output = bmk.feed_forward(*inputs)
    call = lambda: torch.autograd.grad(output, inputs, torch.ones_like(output), retain_graph=True)  # noqa: E731
    first = largest_allocation(call)
    assert first > 64 * MEBIBYTE
    assert largest_allocation(call) == first


def test_threads_at_once():
    """Calls that run at the same time work in memory of their own, whatever was kept."""
    layers = [layer(64 + index, 128, 1024) for index in range(4)]

    def gradients(inputs):
        with torch.enable_grad():
            return torch.autograd.grad(bmk.feed_forward(*inputs, activation="gelu").sum(), inputs)

    expected = [gradients(inputs) for inputs in layers]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(25):
            for results, wanted in zip(pool.map(gradients, layers), expected, strict=True):
                for result, right in zip(results, wanted, strict=True):
                    torch.testing.assert_close(result, right, rtol=0, atol=0)
