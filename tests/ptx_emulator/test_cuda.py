"""The CUDA kernels, executed: every case of every op through the binding and the functional API, forward and backward,
in every dtype, as exact as the tolerance rule asks and without a hazard."""

import inspect
import json
from dataclasses import replace
from unittest import mock

import pytest
import torch
from op_check import DTYPES, check_case, check_repeats, dtype_name, leaves
from typer.testing import CliRunner

import bigmodel_kernels as bmk
from bigmodel_kernels import checks, reference
from bigmodel_kernels.testing import (
    ADD_NORM_CASES,
    ATTENTION_CASES,
    ATTENTION_DECODE_CASES,
    ATTENTION_VARLEN_CASES,
    ATTENTION_WEIGHTS_CASES,
    FEED_FORWARD_CASES,
    LINEAR_CASES,
    LINEAR_CROSS_ENTROPY_CASES,
    ROTARY_CASES,
    LinearCrossEntropyCase,
)
from tests.ptx_emulator import building

if building.nvcc() is None:
    pytest.skip(building.NO_NVCC, allow_module_level=True)

from tests.ptx_emulator import emulated
from tests.ptx_emulator.__main__ import app, main
from tests.ptx_emulator.small_kernel import HEADER

LOSSES = [
    *LINEAR_CROSS_ENTROPY_CASES,
    # More columns than a pass has, forward and backward.
    LinearCrossEntropyCase(
        "two_passes", (3,), 9, 8200, label_smoothing=0.1, z_loss=0.01, softcap=3.0, ignored=None, reduction="sum"
    ),
]
CASES = {
    "attention": ATTENTION_CASES,
    "attention_weights": ATTENTION_WEIGHTS_CASES,
    "attention_varlen": ATTENTION_VARLEN_CASES,
    "linear": LINEAR_CASES,
    "feed_forward": FEED_FORWARD_CASES,
    "add_norm": ADD_NORM_CASES,
    "rotary": ROTARY_CASES,
    "linear_cross_entropy": LOSSES,
}
NAMED = [pytest.param(op, case, id=f"{op}-{case.name}") for op, cases in CASES.items() for case in cases]


class Called(Exception):
    """In place of a call: its arguments by name."""


def arguments_of(op: str, case) -> dict:
    signature = inspect.signature(getattr(reference, op))

    def call(*arguments, **options):
        bound = signature.bind(*arguments, **options)
        raise Called(bound.arguments | bound.arguments.get("options", {}))

    inputs = case.inputs(torch.float32)
    with mock.patch.object(reference, op, call), pytest.raises(Called) as called:
        case.run(inputs, "reference")
    return called.value.args[0]


# What no caller asks for: a CPU's packed weights, and what the gradient needs, which all cases with gradients keep.
INTERNAL = {"packed_weight", "packed_w1", "packed_w2", "packed_w_gate", "save_preactivation"}
# What an argument of a schema can say in words.
WORDS = {"causal": set(checks.CAUSAL.values()), "activation": set(checks.ACTIVATIONS), "gate": set(checks.GATES)}


@pytest.mark.parametrize("op", [*CASES, "attention_decode"])
def test_every_option_has_a_case(op):
    """And every case is run in every dtype, in both directions: test_case, test_decode."""
    calls = [arguments_of(op, case) for case in (CASES | {"attention_decode": ATTENTION_DECODE_CASES})[op]]
    for argument in getattr(torch.ops.bigmodel, op).default._schema.arguments:
        values = [call[argument.name] for call in calls if argument.name in call]
        if argument.name in INTERNAL:
            continue
        if argument.name in WORDS:
            # feed_forward has no layer without an activation.
            assert WORDS[argument.name] - ({"none"} if argument.default_value == "relu" else set()) <= set(values)
        elif argument.name == "mask":
            assert {torch.bool, torch.float32} <= {value.dtype for value in values if value is not None}
        else:
            default = argument.default_value if argument.has_default_value() else None
            assert any(isinstance(value, torch.Tensor) or value != default for value in values), argument.name


@pytest.fixture(scope="module")
def emulator():
    with emulated.cuda_backend() as device:
        yield device


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("op, case", NAMED)
def test_case(op, case, dtype, emulator):
    check_case(case, dtype, "cuda")
    emulator.check()
    needs_launch(case, dtype, emulator)


def needs_launch(case, dtype: torch.dtype, emulator) -> None:
    empty = any(x is not None and x.numel() == 0 for x in case.inputs(dtype).values())
    assert emulator.counters() or empty, "nothing ran on the emulator"


# Host code takes larger tiles where they leave no part of a device idle, splits keys where there are few rows, and has
# fewer stages where shared memory is small: devices on which these small cases meet all that.
DEVICES = {
    "one_multiprocessor_sm_89": {"multiprocessors": 1, "capability": (8, 9), "shared_bytes": 99 << 10},
    "sixteen_multiprocessors": {"multiprocessors": 16},
}
ON_DEVICES = {
    "attention": ("primes", "head_dim_80", "head_dim_129", "large_tiles", "above_large_tiles", "long_keys",
                  "one_query_long", "multi_query", "causal_large", "window_causal", "everything"),
    "attention_weights": ("above_large_tiles", "everything", "everything_averaged"),
    "attention_varlen": ("ragged", "grouped_short", "everything"),
    "linear": ("130x100x70", "gelu_residual", "deep"),
    "feed_forward": ("gelu_plain", "silu_hidden", "relu_input"),
    "linear_cross_entropy": ("everything",),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("op, name", [(op, name) for op, names in ON_DEVICES.items() for name in names])
@pytest.mark.parametrize("device", DEVICES)
def test_other_devices(device, op, name, dtype, emulator):
    emulator.device(**DEVICES[device])
    (case,) = [case for case in CASES[op] if case.name == name]
    check_case(case, dtype, "cuda")
    emulator.check()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(
    "op, name",
    [
        ("add_norm", "rows_257_layer"),
        ("linear", "130x100x70"),
        ("attention", "everything"),
        ("rotary", "partial"),
        ("linear_cross_entropy", "everything"),
        ("attention_varlen", "everything"),
    ],
)
def test_repeats_bitwise(op, name, dtype, emulator):
    (case,) = [case for case in CASES[op] if case.name == name]
    check_repeats(case, dtype, "cuda")
    emulator.check()


TURING = {
    "attention": ("primes", "head_dim_80", "above_large_tiles", "long_keys", "everything"),
    "attention_weights": ("everything",),
    "attention_varlen": ("ragged", "grouped_short", "everything"),
    "linear": ("130x100x70", "gelu_residual"),
    "feed_forward": ("silu_hidden",),
    "add_norm": ("rows_257_layer",),
    "rotary": ("partial", "partial_interleaved"),
    "linear_cross_entropy": ("everything", "two_passes"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("op, name", [(op, name) for op, names in TURING.items() for name in names])
def test_sm_75(op, name, dtype):
    """The PTX for devices without cp.async and with other products."""
    with emulated.cuda_backend((7, 5)) as emulator:
        emulator.device(capability=(7, 5), multiprocessors=4, shared_bytes=64 << 10)
        (case,) = [case for case in CASES[op] if case.name == name]
        check_case(case, dtype, "cuda")
        emulator.check()
        classes = {name for kernel in emulator.counters().values() for name in kernel["classes"]}
    assert "cp_async" not in classes
    if op in ("attention", "attention_varlen", "linear", "feed_forward", "linear_cross_entropy"):
        assert ("mma" in classes) == (dtype == torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("op, case", NAMED)
def test_sm_120(op, case, dtype):
    """The PTX for Blackwell, which nvcc generates in another way."""
    with emulated.cuda_backend((12, 0)) as emulator:
        emulator.device(capability=(12, 0), multiprocessors=4, shared_bytes=99 << 10)
        check_case(case, dtype, "cuda")
        emulator.check()
        needs_launch(case, dtype, emulator)


@pytest.mark.parametrize("q_len", [70, 9])
@pytest.mark.parametrize("capability", [(8, 0), (7, 5), (12, 0)], ids=["sm_80", "sm_75", "sm_120"])
def test_every_option_of_the_largest_heads(capability, q_len):
    """For want of registers they find anew for each tile what is known of a query: of one head, or of a group's."""
    (everything,) = [case for case in ATTENTION_CASES if case.name == "everything"]
    case = replace(everything, batch=1, heads=2, kv_heads=1, q_len=q_len, head_dim=256, value_dim=200)
    with emulated.cuda_backend(capability) as emulator:
        shared_bytes = {(8, 0): 163 << 10, (7, 5): 64 << 10, (12, 0): 99 << 10}[capability]
        emulator.device(capability=capability, multiprocessors=1, shared_bytes=shared_bytes)
        check_case(case, torch.float16, "cuda")
        emulator.check()


@pytest.mark.parametrize("target", [-1, 65, 1 << 40])
def test_a_target_outside_the_vocabulary_is_nan(target, emulator):
    """And touches no memory of others: nobody on the host looks at targets on a device."""
    hidden, weight = torch.randn(3, 16, requires_grad=True), torch.randn(65, 16)
    loss = bmk.linear_cross_entropy(hidden, weight, torch.tensor([1, target, 2]), reduction="none", backend="cuda")
    (grad,) = torch.autograd.grad(loss.sum(), hidden)
    emulator.check()
    assert loss.isnan().tolist() == grad.isnan().all(-1).tolist() == [False, True, False]
    assert grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("wanted", ["hidden", "weight", "bias"])
def test_one_gradient_of_the_loss_alone(wanted, dtype, emulator):
    (case,) = [case for case in LOSSES if case.name == "everything"]
    inputs = case.inputs(dtype)
    everything = leaves(inputs)
    expected = torch.autograd.grad(case.run(everything, "cuda")["loss"], everything[wanted])
    alone = inputs | {wanted: inputs[wanted].detach().requires_grad_()}
    grad = torch.autograd.grad(case.run(alone, "cuda")["loss"], alone[wanted])
    emulator.check()
    torch.testing.assert_close(grad, expected, rtol=0, atol=0)


WRONG_STARTS = ([0, 70, 40], [-9, 30, 70], [8, 30, 1 << 40], [99, 99, 99], [0, 0, 0], [70, 30, 0])


@pytest.mark.parametrize("starts", WRONG_STARTS, ids=str)
def test_starts_that_nobody_checked_reach_nothing_else(starts, emulator):
    """The host does not read cu_seqlens: kernels stay within the tensors whatever it holds."""
    query, key, value, grad = (torch.randn(70, 2, 16) for _ in range(4))
    packed = query, key, value
    starts = torch.tensor(starts), torch.tensor([0, 40, 70])
    ops = emulated.namespace(emulated.NAMESPACE)
    for order in (starts, starts[::-1]):
        output, lse = ops.attention_varlen(*packed, *order)
        ops.attention_varlen_backward(grad, None, *packed, torch.zeros_like(output), torch.zeros_like(lse), *order)
        assert {hazard.kind for hazard in emulator.hazards()} <= {"uninitialised"}


def test_tokens_of_no_sequence_are_refused(emulator):
    query, starts = torch.randn(5, 2, 8), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"^\[attention_varlen\] cu_seqlens_q has no sequence, expected those of 5 "):
        emulated.namespace(emulated.NAMESPACE).attention_varlen(query, query, query, starts, starts)


def test_tensors_are_the_memory_of_the_device(emulator):
    """Without being told of: from their first byte to their last, as long as they live, and NaN when fresh."""
    x, y = torch.arange(5.0), torch.empty(5)
    assert y.isnan().all()
    arguments = {"grid": (1,), "block": (1,), "arguments": [x, y.data_ptr()]}
    text = HEADER + "ld.global.b32 %r5, [%in+16]; st.global.b32 [%out+16], %r5; ret; }"
    emulator.launch_ptx(text, "test", **arguments)
    emulator.check()
    assert y[4] == 4
    text = HEADER + "st.global.b32 [%out+20], %r5; ret; }"
    emulator.launch_ptx(text, "test", **arguments)
    assert [hazard.kind for hazard in emulator.hazards()] == ["out of bounds"]
    del y
    emulator.launch_ptx(text.replace("+20", ""), "test", **arguments)
    assert [hazard.kind for hazard in emulator.hazards()] == ["out of bounds"]


def test_devices_get_other_launches(emulator):
    """What test_other_devices relies on."""
    (case,) = [case for case in CASES["linear"] if case.name == "130x100x70"]
    kernels = []
    for device in ({}, DEVICES["one_multiprocessor_sm_89"]):
        emulator.device(**device)
        case.run(case.inputs(torch.bfloat16), "cuda")
        kernels.append(set(emulator.counters()))
    assert kernels[0] != kernels[1]


def test_command():
    """One line of JSON, or tables."""
    arguments = ["add-norm", "--rows", "5", "--width", "33", "--dtype", "bf16"]
    run = CliRunner().invoke(app, [*arguments, "--backward", "--json"])
    assert run.exit_code == 0, run.output
    (line,) = run.output.splitlines()
    found = json.loads(line)
    assert found["hazards"] == [] and 0 < found["error"] <= 3 * found["reference_error"]
    assert any("add_norm_backward" in kernel for kernel in found["counters"])
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0 and "hazards: none" in run.output and "the reference's in bf16" in run.output


def test_command_of_attention():
    arguments = ["attention", "--batch", "1", "--heads", "4", "--kv-heads", "2", "--q", "97", "--k", "133"]
    arguments += ["--head-dim", "80", "--dtype", "bf16", "--causal", "bottom_right", "--json"]
    for more in ([], ["--backward"]):
        run = CliRunner().invoke(app, arguments + more)
        assert run.exit_code == 0, run.output
        found = json.loads(run.output)
        assert found["hazards"] == [] and 0 < found["error"] <= 3 * found["reference_error"]
        assert all("mma" in kernel["classes"] for name, kernel in found["counters"].items() if "forward" in name)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("attention --heads 3 --kv-heads 2", "[attention] key has 2 heads, query 3: query heads must be a multiple"),
        ("attention --device 7.5", "[attention] products of bfloat16 need compute capability 8.0 or more"),
        ("attention --softcap -1", "[attention] softcap is -1.0; expected a finite number of at least 0"),
        ("linear --activation sine", "[linear] activation is 'sine'; expected one of"),
        ("counters --call sine", "[counters] no call has such a name; expected a part of one of attention forward d64"),
        ("attention --mask sine", "Invalid value for '--mask'"),
        ("attention --layout sine", "Invalid value for '--layout'"),
        ("attention --q -3", "Invalid value for '--q'"),
        ("linear --in-features 0", "Invalid value for '--in-features'"),
    ],
)
def test_command_refuses_in_words(arguments, words, emulator, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments.split())
    output = capsys.readouterr()
    assert left.value.code == 2 and words in output.err and not output.out
    assert not words.startswith("[") or len(output.err.splitlines()) == 1


def test_command_cuts_no_number(emulator):
    run = CliRunner().invoke(app, ["attention", "--q", "97", "--k", "133", "--device", "8.9"])
    assert run.exit_code == 0 and "…" not in run.output, run.output
