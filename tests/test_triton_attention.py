"""What the cases of attention do not reach in the Triton backend: strides of its small arguments, and far offsets."""

import pytest
import torch

import bigmodel_kernels as bmk
from bigmodel_kernels.interpreter import interpreted

pytest.importorskip("triton")
if bmk.info()["backends"]["triton"]:
    pytest.skip("; ".join(bmk.info()["backends"]["triton"]), allow_module_level=True)

from op_check import check_case, device_of

from bigmodel_kernels.testing import ATTENTION_VARLEN_CASES, AttentionCase
from bigmodel_kernels.triton import attention_forward
from bigmodel_kernels.triton.attention_backward import Gradients, attention_backward, gradient_calls
from bigmodel_kernels.triton.attention_forward import attention, forward_calls
from bigmodel_kernels.triton.attention_gradient import Incoming, Terms
from bigmodel_kernels.triton.attention_inputs import prepare, view
from bigmodel_kernels.triton.attention_launch import INTERPRETER
from bigmodel_kernels.triton.attention_varlen import attention_varlen, heads_first, prepare_packed
from bigmodel_kernels.triton.attention_weights import attention_weights
from bigmodel_kernels.triton.attention_weights_backward import attention_weights_backward
from bigmodel_kernels.triton.packed_sequences import ordered

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


@pytest.fixture
def launched(monkeypatch):
    """What attention's forward pass launches: (pass, grid, arguments by name), call by call."""
    calls, plan = [], attention_forward.forward_calls

    def recorded(*arguments):
        planned = plan(*arguments)
        for call in planned:
            arguments_by_name = dict(zip(call.kernel.arg_names, call.arguments, strict=True))
            calls.append((call.name, call.grid, arguments_by_name))
        return planned

    monkeypatch.setattr(attention_forward, "forward_calls", recorded)
    return calls


few_queries = pytest.mark.skipif(
    not interpreted(), reason="how keys are split depends on the device: these sizes are for the interpreter's"
)
LONG = {"batch": 1, "heads": 1, "q_len": 5, "kv_len": 700, "head_dim": 16}
SPLIT = {
    "plain": {},
    "causal": {"causal": "bottom_right"},
    "window": {"window": (400, 30)},
    "sinks": {"sinks": True},
    "mask": {"mask": "float_inf", "softcap": 4.0},
    "dropout": {"dropout_p": 0.3},
}


@few_queries
@pytest.mark.parametrize("options", SPLIT)
def test_long_keys_are_split_among_programs(options, launched):
    """And the parts' results, merged, are the reference's."""
    check_case(AttentionCase("split", **LONG, **SPLIT[options]), torch.float32, "triton")
    (forward, grid, arguments), (merge, _, merged) = launched
    assert (forward, merge) == ("forward", "merge")
    assert arguments["SPLIT"] and grid[1] == arguments["splits"] == merged["splits"] > 1


@few_queries
def test_short_keys_are_not_split(launched):
    check_case(AttentionCase("whole", **(LONG | {"kv_len": 200})), torch.float32, "triton")
    assert [name for name, *_ in launched] == ["forward"]
    assert not launched[0][2]["SPLIT"]


@few_queries
@pytest.mark.parametrize("options", SPLIT)
@pytest.mark.parametrize("kv_len", [40, 700], ids=["whole", "split keys"])
def test_few_queries_of_grouped_heads_are_rows_of_one_tile(kv_len, options, launched):
    sizes = LONG | {"heads": 6, "kv_heads": 2, "kv_len": kv_len}
    check_case(AttentionCase("folded", **sizes, **SPLIT[options]), torch.float32, "triton")
    _, (programs, splits), arguments = launched[0]
    assert arguments["FOLDED"] and programs == 2, "one tile for the three heads of each group"
    assert (splits > 1) == (kv_len == 700)


@few_queries
def test_many_queries_of_grouped_heads_have_tiles_of_their_own(launched):
    check_case(AttentionCase("apart", batch=1, heads=6, kv_heads=2, q_len=33), torch.float32, "triton")
    _, (programs, _), arguments = launched[0]
    assert not arguments["FOLDED"] and programs == 2 * 6


def packed_inputs(lengths: list[int], kv_lengths: list[int], group: int = 1):
    """(inputs, features) of packed sequences of these lengths."""
    query, key = random(sum(lengths), 2 * group, 16), random(sum(kv_lengths), 2, 16)
    starts = [torch.tensor([0, *each], dtype=torch.int32).cumsum(0).to(DEVICE) for each in (lengths, kv_lengths)]
    return prepare_packed("attention_varlen", query, key, key, *starts, *(None,) * 4)


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("group", [1, 3])
def test_each_tile_of_packed_sequences_is_taken_once_and_the_longest_first(group, keys):
    lengths, kv_lengths, block = [5, 0, 64, 700, 1, 31, 33], [7, 40, 3, 650, 0, 90, 90], 32
    inputs, features = packed_inputs(lengths, kv_lengths)
    of_pass, (call,) = ordered(inputs, features, block, group, keys=keys)
    call.run()
    slots, tiles = of_pass.packed.slots, of_pass.packed.tiles.tolist()
    rows, work = (kv_lengths, lengths) if keys else (lengths, kv_lengths)
    taken = [(sequence, tile) for sequence, tile in tiles if sequence >= 0]
    counts = [-(-length * group // block) for length in rows]
    assert sorted(taken) == [(s, tile) for s, count in enumerate(counts) for tile in range(count)]
    assert all(sequence == -1 for sequence, _ in tiles[len(taken) :]) and len(tiles) == slots
    assert [work[s] for s, _ in taken] == sorted((work[s] for s, _ in taken), reverse=True)
    assert slots <= sum(counts) + len(lengths), "few programs have nothing to do"


def test_more_sequences_than_are_compared_at_a_time():
    lengths = [index % 7 for index in range(1100)]
    inputs, features = packed_inputs(lengths, lengths)
    of_pass, (call,) = ordered(inputs, features, 4)
    call._replace(grid=(3,)).run()  # the first of which takes nothing, the others one tile each, of little work
    tiles = of_pass.packed.tiles.tolist()
    longer = sum(-(-length // 4) for length in lengths if length > 1)
    assert tiles[longer] == [1, 0] and tiles[sum(-(-length // 4) for length in lengths if length > 2)] == [2, 0]


@few_queries
@pytest.mark.parametrize(
    ("name", "folded", "split"),
    [("few_queries", False, True), ("few_queries_grouped", True, True), ("few_queries_but_one", True, False)],
)
def test_few_queries_of_packed_sequences(name, folded, split):
    """The cases of test_attention_varlen.py that say so are split and folded."""
    (case,) = [case for case in ATTENTION_VARLEN_CASES if case.name == name]
    inputs = {each: x.to(DEVICE) for each, x in case.inputs(torch.float32).items()}
    tensors = (inputs.get(each) for each in ("query", "key", "value", "cu_seqlens_q", "cu_seqlens_k"))
    prepared, features = prepare_packed("attention_varlen", *tensors, *(None,) * 4)
    sequences = prepared.sizes.batch
    output = heads_first(inputs["query"], sequences)
    lse = random(*output.shape[1:3]).expand(sequences, -1, -1)
    calls = forward_calls(prepared, features, output, lse, output.dtype, INTERPRETER)
    order, forward = calls[:2]
    arguments = dict(zip(forward.kernel.arg_names, forward.arguments, strict=True))
    assert (order.name, arguments["FOLDED"], arguments["SPLIT"]) == ("order_tiles", folded, split)
    assert [call.name for call in calls[2:]] == ["merge"] * split


def test_wrong_starts_read_and_write_nothing_else():
    """They count as the nearest ones that there are."""
    x = random(9, HEADS, 16)
    given = torch.tensor([-3, 4, 100], device=DEVICE), torch.tensor([0, 4, 9], device=DEVICE)
    results = [attention_varlen(x, x, x, starts, starts) for starts in given]
    for ours, expected in zip(*results, strict=True):
        assert torch.equal(ours, expected)
    falling = torch.tensor([0, 5, 2, 9], device=DEVICE)
    output, lse = attention_varlen(x, x, x, falling, falling)
    assert output.isfinite().all() and lse.isfinite().all()


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([torch.zeros(3), torch.zeros(3)], "cu_seqlens_q is torch.float32 of shape"),
        (
            [torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)],
            "cu_seqlens_k is torch.int64 of shape",
        ),
        ([torch.zeros(1, dtype=torch.int64)] * 2, "cu_seqlens_q has 1 entry, and there are tokens"),
    ],
)
def test_starts_that_do_not_fit_are_refused(starts, message):
    x = random(9, HEADS, 16)
    with pytest.raises(ValueError, match=rf"^\[attention_varlen\] {message}"):
        attention_varlen(x, x, x, *starts)


def test_mask_gradient_with_heads_far_apart(monkeypatch):
    """The third head of the gradient lies 2^31 elements from the first. Only what it occupies is ever touched."""
    query, key, value, grad = (random(1, 3, 5, 16, seed=seed) for seed in range(4))
    mask = random(1, 3, 5, 5, seed=4)
    output, lse = attention(query, key, value, mask)
    arguments = (grad, None, query, key, value, output, lse, mask)
    only_mask = (False, False, False, True, False)
    near = attention_backward(*arguments, output_mask=only_mask)[3]
    storage = torch.empty(2 * 2**30 + 25, dtype=mask.dtype, device=DEVICE)
    far = storage.as_strided(mask.shape, (1, 2**30, 5, 1))
    monkeypatch.setattr("bigmodel_kernels.triton.attention_backward.empty_mask_gradient", lambda *_: far)
    assert attention_backward(*arguments, output_mask=only_mask)[3] is far
    assert near.abs().max() > 0.01 and torch.equal(far, near)


# (head_dim, dropout_p, features at a time)
PARTS = [(50, 0.3, 32), (64, 0.3, 32), (100, 0.3, 64), (140, 0, 64)]


@pytest.mark.parametrize(("head_dim", "dropout_p", "part"), PARTS)
@pytest.mark.parametrize("dims", ["hqk", "bk"])
def test_mask_gradient_multiplies_a_part_of_each_row_at_a_time(dims, head_dim, dropout_p, part, monkeypatch):
    """The last part may have features beyond the head's, which are none."""
    calls = []

    def noted(*given):
        found = gradient_calls(*given)
        calls.extend(found)
        return found

    monkeypatch.setattr("bigmodel_kernels.triton.attention_backward.gradient_calls", noted)
    options = {"mask": "float", "mask_dims": dims, "dropout_p": dropout_p, "causal": "top_left"}
    case = AttentionCase("parts", head_dim=head_dim, **options)
    check_case(case, torch.bfloat16, "triton")
    (call,) = [call for call in calls if call.name == "grad_mask"]
    assert dict(zip(call.kernel.arg_names, call.arguments, strict=True))["FEATURES"].chunk == part


def options_of(**changed) -> dict:
    plain = {"causal": "none", "scale": None, "window_left": -1, "window_right": -1, "softcap": 0.0, "dropout_p": 0.0}
    return plain | changed


def empty(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_grids_of_many_matrices():
    """Of a mask of 140,000 matrices; CUDA takes at most 65,535 programs along a grid's second dimension."""
    x, lse, mask = empty(70000, 2, 8, 64), empty(70000, 2, 8, dtype=torch.float32), empty(70000, 2, 8, 8)
    inputs, features = prepare("attention", x, x, x, mask, None, None, None, **options_of())
    incoming = Incoming(Terms(lse, lse), view(x), view(None))
    grads = Gradients(query=x, key=x, value=x, mask=mask)
    calls = gradient_calls(inputs, features, incoming, "output", (x, x, lse, None), grads, mask, INTERPRETER)
    assert {"grad_key_value", "grad_query", "grad_mask"} <= {call.name for call in calls}
    for call in calls:
        assert all(programs <= 65535 for programs in call.grid[1:]), call.name
    assert next(call.grid for call in calls if call.name == "grad_mask") == (140000,)


def test_a_seed_on_another_device_is_moved():
    x = empty(1, 2, 8, 64)
    seed = torch.tensor([7])
    assert seed.device != x.device
    for op, value in (("attention", x), ("attention_weights", None)):
        inputs, _ = prepare(op, x, x, value, None, None, None, seed, **options_of(dropout_p=0.5))
        assert inputs.dropout.seed.device == x.device


def test_a_section_holds_no_more_heads_than_there_are():
    """A large cache and short keys would hold so many that their number times that of tiles exceeds 32 bits."""
    device = INTERPRETER._replace(l2_bytes=50 << 20)
    x, lse = empty(2, 4, 2**22, 16), empty(2, 4, 2**22, dtype=torch.float32)
    key = empty(2, 2, 1, 16)
    inputs, features = prepare("attention", x, key, key, None, None, None, None, **options_of())
    incoming = Incoming(Terms(lse, lse), view(x), view(None))
    grads = Gradients(query=x, key=key, value=key)
    calls = forward_calls(inputs, features, x, lse, x.dtype, device)
    calls += gradient_calls(inputs, features, incoming, "output", (x, x, lse, None), grads, None, device)
    sections = {
        call.name: dict(zip(call.kernel.arg_names, call.arguments, strict=True)).get("section") for call in calls
    }
    assert sections["forward"] == sections["grad_query"] == 8
    assert 1 <= sections["grad_key_value"] <= 4


@pytest.mark.parametrize(("name", "head_dim", "value_dim"), [("head_dim", 513, 16), ("value_dim", 16, 1024)])
def test_heads_of_too_many_features_are_refused(name, head_dim, value_dim):
    """Before any kernel is launched: these tensors have no data."""
    query, value, output, lse = (
        empty(1, 2, 8, head_dim),
        empty(1, 2, 8, value_dim),
        empty(1, 2, 8, value_dim),
        empty(1, 2, 8),
    )
    calls = {
        "attention": lambda: attention(query, query, value),
        "attention_backward": lambda: attention_backward(output, None, query, query, value, output, lse),
    }
    if name == "head_dim":
        calls["attention_weights"] = lambda: attention_weights(query, query, lse)
        calls["attention_weights_backward"] = lambda: attention_weights_backward(empty(1, 2, 8, 8), query, query, lse)
    for op, call in calls.items():
        message = rf"^\[{op}\] {name} is {max(head_dim, value_dim)}; the triton backend takes 1 to 512$"
        with pytest.raises(ValueError, match=message):
            call()
