"""The emulator against a compiler that nobody here wrote: Triton's own PTX for sm_80 gives torch's results, and no
hazards."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="the package triton, which compiles the kernels, is not installed")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set, and interpreted kernels have no PTX", allow_module_level=True)

import triton.language as tl  # noqa: E402

from bigmodel_kernels import reference  # noqa: E402
from bigmodel_kernels.testing.tolerance import FORWARD, GRADIENT, assert_as_exact  # noqa: E402
from bigmodel_kernels.triton.attention_backward import Gradients, empty_row_terms, gradient_calls  # noqa: E402
from bigmodel_kernels.triton.attention_forward import forward_calls  # noqa: E402
from bigmodel_kernels.triton.attention_gradient import Incoming, Terms  # noqa: E402
from bigmodel_kernels.triton.attention_inputs import prepare, view  # noqa: E402
from bigmodel_kernels.triton.attention_launch import Device  # noqa: E402
from bigmodel_kernels.triton.attention_varlen import heads_first, prepare_packed  # noqa: E402
from tests.ptx_emulator import Emulator, triton_kernels  # noqa: E402

A100 = Device(80, 108, 40 << 20)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@triton.jit
def matmul_kernel(a, b, c, m, n, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """c [m, n] = a [m, k] @ b [k, n]"""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, k, BLOCK_K):
        terms = first + tl.arange(0, BLOCK_K)
        factors_a = tl.load(a + rows[:, None] * k + terms, mask=(rows[:, None] < m) & (terms < k), other=0)
        factors_b = tl.load(b + terms[:, None] * n + columns, mask=(terms[:, None] < k) & (columns < n), other=0)
        sums = tl.dot(factors_a, factors_b, sums, input_precision="ieee")
    tl.store(c + rows[:, None] * n + columns, sums, mask=(rows[:, None] < m) & (columns < n))


@triton.jit
def softmax_kernel(x, y, width, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    row = tl.program_id(0)
    scores = tl.load(x + row * width + columns, mask=columns < width, other=-float("inf")).to(tl.float32)
    weights = tl.exp(scores - tl.max(scores, 0))
    tl.store(y + row * width + columns, weights / tl.sum(weights, 0), mask=columns < width)


@pytest.mark.parametrize("m, n, k, num_stages", [(97, 133, 200, 3), (64, 64, 128, 4), (1, 7, 16, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul(dtype, m, n, k, num_stages):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((m, k), (k, n)))
    c = torch.empty(m, n)
    blocks = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}
    arguments = {"a": a, "b": b, "c": c, "m": m, "n": n, "k": k, **blocks}
    grid = (triton.cdiv(m, 64), triton.cdiv(n, 64))
    emulator = Emulator()
    text = triton_kernels.run(emulator, matmul_kernel, grid, arguments, 4, num_stages, uninitialised=("c",))
    emulator.check()
    classes = emulator.counters()["matmul_kernel"]["classes"]
    assert ("mma.sync" in text) == ("mma" in classes) == (dtype != torch.float32)
    assert ("cp.async" in text) == ("cp_async" in classes)
    assert_as_exact("product", c, a.float() @ b.float(), a.double() @ b.double(), FORWARD, torch.float32)


@pytest.mark.parametrize("width", [1, 100, 1024, 3000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax(dtype, width):
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = torch.empty_like(x)
    arguments = {"x": x, "y": y, "width": width, "BLOCK": triton.next_power_of_2(width)}
    emulator = Emulator()
    triton_kernels.run(emulator, softmax_kernel, (5,), arguments, uninitialised=("y",))
    emulator.check()
    assert_as_exact("softmax", y, x.softmax(-1), x.double().softmax(-1), FORWARD, dtype)


def _attention_inputs(dtype: torch.dtype, head_dim: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 97, head_dim), (1, 2, 133, head_dim), (1, 2, 133, head_dim), (1, 4, 97, head_dim))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def _sdpa(query, key, value):
    """Causal to the bottom right, as torch computes it in the inputs' dtype."""
    mask = torch.ones(query.shape[2], key.shape[2]).tril(key.shape[2] - query.shape[2]).bool()
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


def _run_calls(emulator: Emulator, calls) -> None:
    for call in calls:
        arguments = dict(zip(call.kernel.arg_names, call.arguments, strict=True))
        triton_kernels.run(emulator, call.kernel, call.grid, arguments, call.num_warps, call.num_stages)


def _on_emulator(dtype: torch.dtype, tensors: tuple[torch.Tensor, ...], mask: torch.Tensor | None, **options):
    """(output, gradients) of the Triton kernels with the launches that an A100 would get."""
    query, key, value, grad_output = tensors
    output, lse = torch.full_like(query, torch.nan), torch.full(query.shape[:3], torch.nan)
    given = {"scale": None, "window_left": -1, "window_right": -1, "softcap": 0.0, "dropout_p": 0.0} | options
    inputs, features = prepare("attention", query, key, value, mask, None, None, None, **given)
    grads = [torch.empty_like(x) for x in (query, key, value)]
    _run_both_passes(inputs, features, output, lse, grad_output, Terms(*empty_row_terms(query)), Gradients(*grads))
    return output, grads


def _run_both_passes(inputs, features, output, lse, grad_output, terms: Terms, grads: Gradients) -> None:
    emulator = Emulator()
    _run_calls(emulator, forward_calls(inputs, features, output, lse, output.dtype, A100))
    incoming, saved = Incoming(terms, view(grad_output), view(None)), (output, grad_output, lse, None)
    _run_calls(emulator, gradient_calls(inputs, features, incoming, "output", saved, grads, None, A100))
    emulator.check()


def _check_attention(dtype: torch.dtype, tensors: tuple[torch.Tensor, ...], found, attend) -> None:
    """attend(query, key, value): what is right, in any dtype."""

    def run(wanted: torch.dtype):
        leaves = [x.to(wanted).requires_grad_() for x in tensors[:3]]
        result = attend(*leaves)
        return result.detach(), torch.autograd.grad(result, leaves, tensors[3].to(wanted))

    (exact, exact_grads), (near, near_grads) = run(torch.float64), run(dtype)
    assert_as_exact("output", found[0], near, exact, FORWARD, dtype)
    for name, grad, near, true in zip(("query", "key", "value"), found[1], near_grads, exact_grads, strict=True):
        assert_as_exact(f"gradient of {name}", grad, near, true, GRADIENT, dtype)


@pytest.mark.parametrize("head_dim", [64, 80])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention(dtype, head_dim):
    """Forward and backward, causal, two query heads to a key head, beside torch's own."""
    tensors = _attention_inputs(dtype, head_dim)
    _check_attention(dtype, tensors, _on_emulator(dtype, tensors, None, causal="bottom_right"), _sdpa)


@pytest.mark.parametrize("heads", [2, 4], ids=["tiles of a head", "folded"])
def test_attention_of_packed_sequences(heads):
    """One that is longer than a tile, one of a single query and one without queries; with more heads than the queries
    are on the average, a group's are rows of one tile."""
    dtype, lengths = torch.bfloat16, ((130, 133), (0, 5), (1, 70), (3, 64))
    starts = [torch.tensor([0, *each]).cumsum(0) for each in zip(*lengths, strict=True)]
    generator = torch.Generator().manual_seed(0)
    sizes = [(starts[0][-1], heads), (starts[1][-1], 2), (starts[1][-1], 2), (starts[0][-1], heads)]
    tensors = tuple(torch.randn(*size, 64, generator=generator).to(dtype) for size in sizes)
    query, key, value, grad_output = tensors
    inputs, features = prepare_packed("", query, key, value, *starts, *(None,) * 4, causal="bottom_right")
    output, lse = torch.full_like(query, torch.nan), torch.full((heads, query.shape[0]), torch.nan)
    grads = [torch.empty_like(x) for x in (query, key, value)]
    of_all = [heads_first(x, len(lengths)) for x in (output, grad_output, *grads)]
    terms = Terms(*(torch.empty_like(lse) for _ in range(2)))
    rows = lse.expand(len(lengths), -1, -1)
    _run_both_passes(inputs, features, of_all[0], rows, of_all[1], terms, Gradients(*of_all[2:]))

    def attend(*leaves):
        return reference.attention_varlen(*leaves, *starts, causal="bottom_right")[0]

    _check_attention(dtype, tensors, (output, grads), attend)


@pytest.mark.parametrize("options", [{"masked": True}, {"softcap": 1.5}, {"masked": True, "softcap": 1.5}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_with_options(dtype, options):
    """A boolean mask in which some queries see no key, and a softcap, which torch's own attention does not have."""
    tensors = _attention_inputs(dtype, 64)
    mask, softcap = None, options.get("softcap", 0.0)
    if options.get("masked"):
        mask = torch.rand(1, 4, 97, 133, generator=torch.Generator().manual_seed(1)) < 0.7
        mask[:, 1, 5:7] = False
    found = _on_emulator(dtype, tensors, mask, causal="none", softcap=softcap)
    _check_attention(dtype, tensors, found, lambda *qkv: reference.attention(*qkv, mask, softcap=softcap)[0])
