"""The CUDA kernels of generation, executed: every case of attention_decode, and of rotary what test_cuda.py does not
run; and what only the device sees, since no host waits for it: positions, lengths and pages that are not there."""

from dataclasses import replace

import pytest
import torch
from decode_check import check_case as check_decode
from op_check import DTYPES, check_case, dtype_name

import bigmodel_kernels as bmk
from bigmodel_kernels.testing import ATTENTION_DECODE_CASES, ROTARY_CASES, AttentionDecodeCase
from tests.ptx_emulator import building

if building.nvcc() is None:
    pytest.skip(building.NO_NVCC, allow_module_level=True)

from tests.ptx_emulator import emulated

ROTARY = {case.name: case for case in ROTARY_CASES}
DECODE = {case.name: case for case in ATTENTION_DECODE_CASES}
# Heads are taken four at a time: here one is left over of query's and key's together.
CHUNKED = [
    replace(ROTARY[name], name=f"{name}_chunked", heads=6, kv_heads=3, rotary_dim=32, head_dim=48)
    for name in ("plain", "plain_interleaved", "float32_tables", "float32_tables_interleaved", "positions_of_each",
                 "tokens_interleaved")
]  # fmt: skip


@pytest.fixture(scope="module")
def emulator():
    with emulated.cuda_backend() as device:
        yield device


def counted(emulator) -> dict[str, dict]:
    """The counts of one kernel, by class of instruction."""
    (kernel,) = emulator.counters().values()
    return kernel["classes"]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", CHUNKED, ids=lambda case: case.name)
def test_rotary_in_chunks(case, dtype, emulator):
    check_case(case, dtype, "cuda")
    emulator.check()
    emulator.counters()
    inputs = case.inputs(dtype)
    case.run(inputs, "cuda")
    stores = counted(emulator)["store_global"]
    bytes_written = dtype.itemsize * sum(inputs[name].numel() for name in ("query", "key"))
    assert stores["bytes"] == bytes_written == 16 * stores["lanes"], stores


# One element at a time where 128 bits do not fit. Sizes are even, so that no word of four bytes is read by two blocks:
# the emulator, which keeps one note of a word's readers, would take a write to the other half for a race.
IN_PLACE = [
    *CHUNKED[:2],
    *(replace(ROTARY[name], rotary_dim=20, head_dim=36) for name in ("plain", "plain_interleaved")),
    ROTARY["no_key"],
    ROTARY["heads_inside"],
]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", IN_PLACE, ids=lambda case: case.name)
def test_rotary_in_place(case, dtype, emulator):
    """The same numbers; features that do not turn are not touched."""
    inputs = case.inputs(dtype)
    expected = case.run(inputs, "cuda")
    emulator.counters()
    turned = bmk.rotary(**inputs, interleaved=case.interleaved, inplace=True, backend="cuda")
    emulator.check()
    assert turned[0] is inputs["query"] and turned[1] is inputs["key"]
    for name, ours in expected.items():
        assert torch.equal(ours, inputs[name])
    elements = sum(ours.numel() for ours in expected.values()) // case.head_dim * (case.rotary_dim or case.head_dim)
    assert counted(emulator)["store_global"]["bytes"] == dtype.itemsize * elements


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_of_positions_outside_the_tables(interleaved, emulator):
    """Nothing waits for the device to refuse them: they give NaN, as on Triton, and read nothing."""
    query, tables = torch.randn(1, 2, 4, 10), [torch.randn(6, 4) for _ in range(2)]
    turned, _ = bmk.rotary(query, None, *tables, torch.tensor([0, -1, 6, 5]), interleaved=interleaved, backend="cuda")
    emulator.check()
    assert turned[..., 1:3, :8].isnan().all() and not turned[..., 8:].isnan().any()
    assert not turned[..., [0, 3], :].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", ATTENTION_DECODE_CASES, ids=lambda case: case.name)
def test_decode(case, dtype, emulator):
    check_decode(case, dtype, "cuda")
    emulator.check()
    assert emulator.counters() or not case.lengths, "nothing ran on the emulator"


def decode_case(name: str, **changes) -> AttentionDecodeCase:
    return replace(DECODE[name], name=f"{name} {changes}", **changes)


# Heads whose output several blocks share, and whose keys tensor cores multiply some features after the others: every
# case of its own sizes apart, once each.
LARGE_SIZES = (160, 192, 256)
LARGE = list(
    {
        replace(case, name="", head_dim=64, value_dim=None, cache_dtype=None): case for case in ATTENTION_DECODE_CASES
    }.values()
)


@pytest.mark.parametrize("head_dim", LARGE_SIZES)
@pytest.mark.parametrize("operands", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
def test_decode_of_large_heads(case, operands, head_dim, emulator):
    dtype = torch.float16 if operands == "fp16" else torch.bfloat16
    cache_dtype = torch.int8 if operands == "int8" else None
    check_decode(replace(case, head_dim=head_dim, value_dim=None, cache_dtype=cache_dtype), dtype, "cuda")
    emulator.check()
    decoding = {name for name in emulator.counters() if "decode_kernel" in name}
    assert not any("plain" in name for name in decoding) and (decoding or not case.lengths), decoding


# Larger than a block's columns or a lane's share of a key; and where there are blocks enough not to split the keys.
LARGE_HEADS = {"head_dim": 520, "value_dim": 530, "heads": 4, "lengths": (70, 3)}
LARGE_ALIGNED = {**LARGE_HEADS, "head_dim": 528, "value_dim": 544}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(
    "case",
    [*(decode_case(name, **sizes) for name in ("plain", "cache_int8") for sizes in (LARGE_HEADS, LARGE_ALIGNED)),
     DECODE["everything_bf16"], DECODE["pages_int8"], DECODE["queries_16"], DECODE["long_fp16"], DECODE["evicted_own"]],
    ids=lambda case: case.name,
)  # fmt: skip
def test_decode_on_one_multiprocessor(case, dtype, emulator):
    emulator.device(multiprocessors=1)
    emulator.counters()
    check_decode(case, dtype, "cuda")
    emulator.check()
    assert not any("merge" in kernel for kernel in emulator.counters())


def test_decode_splits_keys_among_blocks(emulator):
    """Each of some pieces of 64 keys; and their merge does not depend on how many blocks run at once."""
    results = []
    for threads in (1, 4):
        emulator.threads(threads)
        case = DECODE["long_int8"]
        results.append(case.run(case.inputs(torch.float16), "cuda"))
        counters = emulator.counters()
        assert sum("merge" in kernel for kernel in counters) == 1
        (blocks,) = (each["blocks"] for kernel, each in counters.items() if "decode_kernel" in kernel)
        assert blocks >= 40  # 2 sequences of 2 heads
    for name, ours in results[0].items():
        torch.testing.assert_close(ours, results[1][name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_decode_reads_the_cache_once_for_all_heads_of_a_group(cache_dtype, emulator):
    """128 bits at a time, from pages too."""
    case = decode_case("plain", lengths=(1023,), heads=4, kv_heads=1, head_dim=128, page_size=16)
    case = replace(case, cache_dtype=cache_dtype)
    inputs = case.inputs(torch.bfloat16)
    emulator.counters()
    case.run(inputs, "cuda")
    (counters,) = (each for kernel, each in emulator.counters().items() if "decode_kernel" in kernel)
    loads = counters["classes"]["load_global"]
    entries = 2 * 1024 * 128 * cache_dtype.itemsize
    assert entries < loads["bytes"] < 1.25 * entries
    assert loads["bytes"] > 8 * loads["lanes"]
    on_tensor_cores = cache_dtype != torch.float32
    assert ("mma" in counters["classes"]) == on_tensor_cores
    shared = [each for name, each in counters["classes"].items() if name in ("load_shared", "store_shared")]
    conflicts = sum(each["wavefronts"] - each["ideal_wavefronts"] for each in shared)
    assert conflicts == 0 or not on_tensor_cores, "of banks"


def test_decode_of_what_is_not_in_the_cache(emulator):
    """No host waits to refuse it: a query that sees a key without a place gives NaN, and such a key is not written."""
    lengths = torch.tensor([5, 8, 9, -1, 2**40, 3])
    caches = [torch.randn(8, 1, 4, 16) for _ in range(2)]
    table = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 6], [7, 7], [8, -1]])
    before = [cache.clone() for cache in caches]
    query, new = torch.randn(6, 2, 1, 16), torch.randn(6, 1, 1, 16)
    output = bmk.attention_decode(
        query, *caches, lengths, block_table=table, new_key=new, new_value=new, backend="cuda"
    )
    emulator.check()
    unknown = output.isnan().all(-1).all(-1).all(-1)
    assert unknown.tolist() == [False, True, True, False, True, True]
    assert not output[[0, 3]].isnan().any() and output[3].eq(0).all()
    for cache, old in zip(caches, before, strict=True):
        old[1, :, 1] = new[0, :, 0]
        assert torch.equal(cache, old)


def test_decode_of_extreme_scores(emulator):
    """Scores far beyond the range of exp: the largest wins, nothing overflows."""
    key = torch.tensor([-100.0, 99.0, -100.0, 100.0, 0.0] * 30)[:, None].expand(1, 1, 150, 4).contiguous()
    value = torch.arange(150.0)[:, None].expand(1, 1, 150, 2).contiguous()
    query, options = torch.full((1, 1, 1, 4), 100.0), {"return_lse": True, "backend": "cuda"}
    output, lse = bmk.attention_decode(query, key, value, torch.tensor([4]), scale=1.0, **options)
    assert output.eq(3).all() and lse.eq(40000).all()
    output, lse = bmk.attention_decode(query, key, value, torch.tensor([150]), scale=-1.0, **options)
    expected = torch.arange(150).reshape(30, 5)[:, [0, 2]].float().mean()
    torch.testing.assert_close(output, expected.expand_as(output))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", ATTENTION_DECODE_CASES, ids=lambda case: case.name)
def test_decode_on_sm_120(case, dtype):
    with emulated.cuda_backend((12, 0)) as emulator:
        emulator.device(capability=(12, 0), multiprocessors=4, shared_bytes=99 << 10)
        check_decode(case, dtype, "cuda")
        emulator.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=dtype_name)
@pytest.mark.parametrize(
    "case",
    [*(DECODE[name] for name in ("everything_int8", "pages_fp16", "long_fp32", "odd_bf16")),
     decode_case("everything_int8", head_dim=256, value_dim=256), decode_case("pages_fp16", head_dim=192)],
    ids=lambda case: case.name,
)  # fmt: skip
def test_decode_on_sm_75(case, dtype):
    with emulated.cuda_backend((7, 5)) as emulator:
        emulator.device(capability=(7, 5), multiprocessors=4, shared_bytes=64 << 10)
        check_decode(case, dtype, "cuda")
        emulator.check()
