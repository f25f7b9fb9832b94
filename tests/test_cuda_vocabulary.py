"""The pieces that the CUDA kernels are made of, each alone, executed by the PTX emulator."""

import ctypes
import math
from pathlib import Path

import pytest
import torch
from tf32 import rounded

from bigmodel_kernels.reference import philox
from bigmodel_kernels.reference.linear import activate
from bigmodel_kernels.testing import FORWARD, GRADIENT, assert_as_exact
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


# What products multiply: fp16, bf16, and fp32 as TF32.
NUMBERS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
LYING = ["right_rows", "right_depth", "left_depth", "accumulators"]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("lying", LYING)
def test_products_of_tiles(vocabulary, dtype, lying):
    check_products(vocabulary, dtype, lying, 8 if dtype == torch.float32 else 16)


@pytest.mark.parametrize("lying", LYING)
def test_products_of_tiles_on_turing(turing, lying):
    check_products(turing, torch.float16, lying, 8)


def check_products(vocabulary, dtype, lying, step):
    """Operands in every orientation, from swizzled tiles, without a bank conflict."""
    left, right = operands(dtype)
    given_left, given_right = left, right if lying in ("right_rows", "accumulators") else right.T.contiguous()
    if lying == "left_depth":
        given_left = torch.cat([left, torch.randn(16, 96).to(dtype)]).T.contiguous()
    c = torch.empty(16, 96 if lying == "accumulators" else 64)
    number = LYING.index(lying)
    counters = call(vocabulary.run_product, NUMBERS[dtype], given_left, given_right, number, c=c)
    truth, reference = left.double() @ right.double().T, left.float() @ right.float().T
    if lying == "accumulators":
        again = rounded(reference) if dtype == torch.float32 else reference.to(dtype).float()
        truth, reference = truth @ right.double(), again @ right.float()
    assert_as_exact(lying, c, reference, truth, FORWARD, torch.float32)
    (kernel,) = counters.values()
    for name in ("ldmatrix", "load_shared"):
        counted = kernel["classes"].get(name)
        assert counted is None or counted["wavefronts"] == counted["ideal_wavefronts"], name
    products = 64 // 8 * 96 // step
    assert kernel["classes"]["mma"]["issued"] == products * (2 if lying == "accumulators" else 1)


def operands(dtype):
    """left [16, 96] and right [64, 96], of which TF32 keeps every bit."""
    return ((rounded(x) if dtype == torch.float32 else x.to(dtype)) for x in (torch.randn(16, 96), torch.randn(64, 96)))


@pytest.mark.parametrize("lying", LYING[:3])
def test_products_round_to_tf32(vocabulary, lying):
    """To the nearest: more bits than TF32 has give the products of the rounded operands."""
    left = torch.randn((96, 32) if lying == "left_depth" else (16, 96))
    right = torch.randn((64, 96) if lying == "right_rows" else (96, 64))
    found = []
    for operands in ((left, right), (rounded(left), rounded(right))):
        found.append(torch.empty(16, 64))
        call(vocabulary.run_product, NUMBERS[torch.float32], *operands, LYING.index(lying), c=found[-1])
    assert not torch.equal(left, rounded(left)) and torch.equal(*found)


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
    assert_as_exact("lse", lse, *(f(scores, scale) for f in (log_sum, log_sum_in_double)), FORWARD, torch.float32)
    wanted = torch.ones(16, 8, dtype=torch.float64)
    wanted[3] = 0
    summed = torch.softmax(scores * scale, -1).nan_to_num().sum(-1, keepdim=True).expand(16, 8)
    assert_as_exact("sums", output, summed, wanted, FORWARD, torch.float32)


def log_sum(scores, scale):
    return torch.logsumexp(scores * scale, -1)


def log_sum_in_double(scores, scale):
    return log_sum(scores.double(), scale)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_slopes(vocabulary, activation):
    x = torch.cat([torch.linspace(-12, 12, 200), torch.tensor([-math.inf, -200.0, -30.0, -1e-20, 1e-20, 30.0, 200.0])])
    value, slope = torch.empty_like(x), torch.empty_like(x)
    call(vocabulary.run_activation, x, len(x), ACTIVATIONS.index(activation), value=value, slope=slope)
    (true, true_slope), (reference, reference_slope) = (value_and_slope(each, activation) for each in (x.double(), x))
    # By size: an error beside zero must not hide behind a large value.
    for smallest, largest in ((0, 1), (1, 4), (4, 13), (13, 1000)):
        some = (x.abs() >= smallest) & (x.abs() < largest)
        assert some.sum() > 3
        assert_as_exact("value", value[some], reference[some], true[some], FORWARD, torch.float32)
        assert_as_exact("slope", slope[some], reference_slope[some], true_slope[some], GRADIENT, torch.float32)


def value_and_slope(x, activation):
    x = x.clone().requires_grad_()
    y = activate(x, activation)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


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
    for column, group in enumerate((256, 32, 4)):
        truth, reference = (each.view(-1, group).sum(1).repeat_interleave(group) for each in (x.double(), x))
        assert_as_exact(f"sums of {group}", results[:, column], reference, truth, FORWARD, torch.float32)
    assert torch.equal(results[:, 3], x.view(64, 4).amax(1).repeat_interleave(4))
    assert all(len(results[group, i].unique()) == 1 for i, group in enumerate([slice(256), slice(32), slice(4)]))


@pytest.mark.parametrize("deep", [1, 16, 33, 64])
def test_products_without_tensor_cores(vocabulary, deep):
    """Also of what one product leaves for the next, as it is or transposed; without a bank conflict."""
    left, right = torch.randn(64, deep), torch.randn(64, deep)
    outputs = {"c": torch.empty(64, 64), "again": torch.empty(64, deep), "transposed": torch.empty(64, deep)}
    counters = call(vocabulary.run_plain_product, left, right, deep, **outputs)

    def products(x, y):
        c = x @ y.T
        return {"c": c, "again": c @ y, "transposed": c.T @ x}

    reference, truth = products(left, right), products(left.double(), right.double())
    for name, found in outputs.items():
        assert_as_exact(name, found, reference[name], truth[name], FORWARD, torch.float32)
    (kernel,) = counters.values()
    for name in ("load_shared", "store_shared"):
        counted = kernel["classes"][name]
        assert counted["wavefronts"] == counted["ideal_wavefronts"], name


def test_exp2(vocabulary):
    """Within what the PTX manual says of ex2.approx."""
    x, y = torch.cat([torch.linspace(-140, 100, 254), torch.tensor([-math.inf, 0.0])]), torch.empty(256)
    call(vocabulary.run_exp2, x, y=y)
    true = torch.exp2(x.double())
    tiny = torch.finfo(torch.float32).tiny
    assert ((y.double() - true).abs() <= 2**-22 * true + tiny).all()
