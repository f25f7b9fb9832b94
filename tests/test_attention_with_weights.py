"""Attention and its weights at once: as exact as the two ops, on every CPU target, and only where nothing can tell."""

import pytest
import torch
from conftest import CPU_DISPATCHES
from op_check import DTYPES, dtype_name

import bigmodel_kernels as bmk
from bigmodel_kernels.functional import attention_with_weights as module
from bigmodel_kernels.functional.attention_with_weights import attention_with_weights
from bigmodel_kernels.testing import ATTENTION_CASES, AttentionCase
from bigmodel_kernels.testing.tolerance import FORWARD, assert_as_exact

pytestmark = [
    pytest.mark.skipif(module._kernel is None, reason="this torch lacks what direct calls need"),
    pytest.mark.filterwarnings("error"),
]
_TAKEN = {"query", "key", "value", "mask"}


def plain_cases() -> list[AttentionCase]:
    """Attention's cases without an option that this kernel's callers never have."""
    defaults = AttentionCase("defaults")
    options = ("window", "scale", "softcap", "alibi", "sinks", "dropout_p")
    plain = [
        case
        for case in ATTENTION_CASES
        if all(getattr(case, option) == getattr(defaults, option) for option in options)
        and not case.name.startswith("zero")
    ]
    # Several panels a job and blocks of keys, of which a mask or the band leaves a part.
    long = {"batch": 1, "heads": 3, "q_len": 290, "kv_len": 451, "head_dim": 40}
    return [
        *plain,
        AttentionCase("long", **long),
        AttentionCase("long_causal", causal="bottom_right", **long),
        AttentionCase("long_mask", mask="bool_rows", **long),
        AttentionCase("long_heads_inside", layout="heads_inside", **long),
    ]


def both(inputs, case, average, backend):
    output, lse = bmk.attention(**inputs, causal=case.causal, return_lse=True, backend=backend)
    rest = {name: inputs[name] for name in ("query", "key", "mask") if name in inputs}
    return output, bmk.attention_weights(**rest, lse=lse, causal=case.causal, average_heads=average, backend=backend)


@pytest.mark.parametrize("average", [False, True], ids=["per_head", "averaged"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", plain_cases(), ids=lambda case: case.name)
@pytest.mark.parametrize("backend", CPU_DISPATCHES, ids=lambda dispatch: dispatch[1], indirect=True)
def test_as_exact_as_the_ops(monkeypatch, case, dtype, average, backend):
    monkeypatch.setattr(module, "_SMALL", 1 << 30)  # however many threads the machine has
    inputs = case.inputs(dtype)
    assert set(inputs) <= _TAKEN
    arguments = (inputs["query"], inputs["key"], inputs["value"], inputs.get("mask"))
    answer = attention_with_weights(*arguments, causal=case.causal, average_heads=average)
    assert answer is not None
    wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    truths = both(wide, case, average, "reference")
    references = both(inputs, case, average, "reference")
    for name, got, reference, truth in zip(("output", "weights"), answer, references, truths, strict=True):
        assert_as_exact(name, got, reference, truth, FORWARD, dtype)


def tensors(q_len=8, kv_len=8, **options):
    torch.manual_seed(0)
    return [torch.randn(1, 2, length, 16, **options) for length in (q_len, kv_len, kv_len)]


@pytest.mark.parametrize("average", [False, True])
def test_threads_do_not_change_bits(average):
    arguments = (*tensors(200, 300), None, False, average)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = attention_with_weights(*arguments)
        torch.set_num_threads(3)
        together = attention_with_weights(*arguments)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    "arguments",
    [
        tensors(requires_grad=True),
        tensors(dtype=torch.float64),
        tensors(8, module._MOST_KEYS + 1),
        [x if i == 0 else x[:, :, :0] for i, x in enumerate(tensors())],
        [x[:, :, :0] for x in tensors()],
    ],
    ids=["gradient", "float64", "many_keys", "no_keys", "nothing"],
)
def test_what_the_ops_do(arguments):
    assert attention_with_weights(*arguments, None, False, True) is None


def test_few_jobs_are_left_to_the_ops():
    """One panel of queries and many keys: the ops divide heads and keys among threads."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert attention_with_weights(*tensors(32, 4096), None, False, True) is None
        assert attention_with_weights(*tensors(8, 8), None, False, True) is not None
    finally:
        torch.set_num_threads(threads)


def test_watched_calls_go_through_the_dispatcher():
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen, attention = [], bmk.nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.randn(1, 8, 16)
    with torch.no_grad(), Watch():
        attention(x, x, x)
    assert any("bigmodel.attention_weights" in name for name in seen)


def test_wrong_masks_are_named():
    with pytest.raises(ValueError, match=r"^\[attention\] mask"):
        attention_with_weights(*tensors(), torch.zeros(1, 2, 8, 9), False, True)
    with torch.no_grad(), pytest.raises(ValueError, match=r"^\[attention\] mask"):
        attention_with_weights(*tensors(), torch.zeros(8, 8, dtype=torch.int32), False, True)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_module(monkeypatch, average, dropout):
    """nn.MultiheadAttention takes the kernel, but not where all weights are dropped."""
    theirs = torch.nn.MultiheadAttention(16, 2, batch_first=True, dropout=dropout)
    attention = bmk.nn.MultiheadAttention(16, 2, batch_first=True, dropout=dropout)
    attention.load_state_dict(theirs.state_dict())
    x, padding = torch.randn(3, 9, 16), torch.arange(9) > torch.tensor([[8], [5], [0]])
    calls, kernel = [], module._kernel
    monkeypatch.setattr(module, "_kernel", lambda *args, **kwargs: calls.append(1) or kernel(*args, **kwargs))
    with torch.no_grad():
        for ours, other in zip(
            attention(x, x, x, key_padding_mask=padding, average_attn_weights=average),
            theirs(x, x, x, key_padding_mask=padding, average_attn_weights=average),
            strict=True,
        ):
            torch.testing.assert_close(ours, other)
    assert len(calls) == (dropout == 0.0)
