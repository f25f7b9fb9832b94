"""The pieces that the CUDA kernels are made of, each alone, executed by the PTX emulator."""

import ctypes
import math
from pathlib import Path

import pytest
import torch

from bigmodel_kernels.reference import philox
from bigmodel_kernels.reference.linear import activate
from tests.ptx_emulator import Emulator, building

ROOT = Path(__file__).resolve().parent.parent
ACTIVATIONS = ["none", "relu", "gelu", "gelu_tanh", "silu"]

pytestmark = pytest.mark.skipif(building.nvcc() is None, reason=building.NO_NVCC)


def compiled(arch: int) -> ctypes.CDLL:
    source = ROOT / "tests/cuda/vocabulary.cu"
    Emulator()
    return ctypes.CDLL(str(building.cuda_library(source, include=(ROOT / "csrc", ROOT / "csrc/include"), arch=arch)))


@pytest.fixture(scope="module")
def vocabulary():
    return compiled(80)


@pytest.fixture(scope="module")
def turing():
    """For sm_75, which has neither cp.async nor products with a depth of 16 or in bf16."""
    return compiled(75)


def call(function, *arguments, **outputs):
    """Runs one of the library's functions on tensors and numbers; `outputs` come last, and must all be written."""
    emulator = Emulator()
    inputs = {f"input{i}": x for i, x in enumerate(arguments) if isinstance(x, torch.Tensor)}
    pointers = [
        ctypes.c_void_p(x.data_ptr()) if isinstance(x, torch.Tensor) else x for x in (*arguments, *outputs.values())
    ]
    emulator.counters()  # of what others ran
    with emulator.buffers(**inputs), emulator.buffers(initialised=False, **outputs):
        function(*pointers)
    emulator.check()
    return emulator.counters()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lying", ["right_rows", "right_depth", "left_depth"])
def test_products_of_tiles(vocabulary, dtype, lying):
    check_products(vocabulary, dtype, lying, 16)


@pytest.mark.parametrize("lying", ["right_rows", "right_depth", "left_depth"])
def test_products_of_tiles_on_turing(turing, lying):
    check_products(turing, torch.float16, lying, 8)


def check_products(vocabulary, dtype, lying, step):
    """Operands in every orientation, from swizzled tiles, without a bank conflict."""
    left, right = (torch.randn(rows, 96).to(dtype) for rows in (16, 64))
    given_left, given_right = left, right if lying == "right_rows" else right.T.contiguous()
    if lying == "left_depth":
        given_left = torch.cat([left, torch.randn(16, 96).to(dtype)]).T.contiguous()
    c = torch.empty(16, 64)
    number = ["right_rows", "right_depth", "left_depth"].index(lying)
    counters = call(vocabulary.run_product, int(dtype == torch.float16), given_left, given_right, number, c=c)
    torch.testing.assert_close(c, left.float() @ right.float().T, rtol=1e-5, atol=1e-5)
    (kernel,) = counters.values()
    ldmatrix = kernel["classes"]["ldmatrix"]
    assert ldmatrix["wavefronts"] == ldmatrix["ideal_wavefronts"]
    assert kernel["classes"]["mma"]["issued"] == 96 // step * 64 // 8


def test_copies_fill_up_with_zeros(vocabulary):
    source, copied = torch.randn(11, 40).half(), torch.empty(16, 96, dtype=torch.float16)
    call(vocabulary.run_copy, source, 40, 11, to=copied)
    wanted = torch.zeros(16, 96, dtype=torch.float16)
    wanted[:11, :40] = source
    assert torch.equal(copied, wanted)


@pytest.mark.parametrize("plain", [0, 1])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_online_softmax(vocabulary, plain, spread):
    """The sum of the probabilities is 1 and the log-sum-exp right, with rows that see nothing, or nothing at first."""
    scores = torch.randn(16, 192) * spread
    scores[3] = -math.inf
    scores[5, :128] = -math.inf
    scores[6, 64:] = -math.inf
    scale = 0.3 if plain else 1.0
    output, lse = torch.empty(16, 8), torch.empty(16)
    call(vocabulary.run_softmax, plain, scores, 192, ctypes.c_float(scale), output=output, lse=lse)
    torch.testing.assert_close(lse, torch.logsumexp(scores.double() * scale, -1).float(), rtol=2e-6, atol=2e-6)
    wanted = torch.ones(16, 8)
    wanted[3] = 0
    torch.testing.assert_close(output, wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_slopes(vocabulary, activation):
    x = torch.cat([torch.linspace(-12, 12, 200), torch.tensor([-math.inf, -200.0, -30.0, -1e-20, 1e-20, 30.0, 200.0])])
    value, slope = torch.empty_like(x), torch.empty_like(x)
    call(vocabulary.run_activation, x, len(x), ACTIVATIONS.index(activation), value=value, slope=slope)
    wide = x.double().requires_grad_()
    true = activate(wide, activation)
    (true_slope,) = torch.autograd.grad(true.sum(), wide)
    finite = torch.isfinite(x)
    torch.testing.assert_close(value[finite].double(), true.detach()[finite], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slope[finite].double(), true_slope[finite], rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("way", ["alone", "shared", "transposed"])
def test_dropout_is_the_reference_bit_for_bit(vocabulary, way):
    seed, p = torch.tensor(-0x123456789ABCDEF), 0.3
    batch, head, query, key = 2, 3, 32, 64
    factors = torch.empty(16, 64)
    number = ["alone", "shared", "transposed"].index(way)
    call(vocabulary.run_dropout, ctypes.c_double(p), seed, number, batch, head, query, key, factors=factors)
    keep = philox.dropout_keep(batch + 1, head + 1, query + 64, key + 64, p, seed)[batch, head]
    wanted = keep[query : query + 64, key : key + 16].T if way == "transposed" else keep[query : query + 16, key:]
    assert torch.equal(factors, wanted.float() * torch.tensor(1 / (1 - p), dtype=torch.float32))


def test_reductions(vocabulary):
    x, results = torch.randn(256), torch.empty(256, 4)
    call(vocabulary.run_reduction, x, results=results)
    wanted = torch.stack(
        [
            x.sum().expand(256),
            x.view(8, 32).sum(1).repeat_interleave(32),
            x.view(64, 4).sum(1).repeat_interleave(4),
            x.view(64, 4).amax(1).repeat_interleave(4),
        ],
        dim=1,
    )
    torch.testing.assert_close(results, wanted, rtol=1e-5, atol=1e-5)
    assert all(len(results[group, i].unique()) == 1 for i, group in enumerate([slice(256), slice(32), slice(4)]))


@pytest.mark.parametrize("deep", [1, 16, 33, 64])
def test_products_without_tensor_cores(vocabulary, deep):
    left, right = torch.randn(64, deep), torch.randn(64, deep)
    c, again = torch.empty(64, 64), torch.empty(64, deep)
    call(vocabulary.run_plain_product, left, right, deep, c=c, again=again)
    torch.testing.assert_close(c, left @ right.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again, left @ right.T @ right, rtol=1e-5, atol=1e-4)


def test_exp2(vocabulary):
    x, y = torch.cat([torch.linspace(-140, 100, 254), torch.tensor([-math.inf, 0.0])]), torch.empty(256)
    call(vocabulary.run_exp2, x, y=y)
    true = torch.exp2(x.double())
    tiny = torch.finfo(torch.float32).tiny
    assert ((y.double() - true).abs() <= 2**-22 * true + tiny).all()
