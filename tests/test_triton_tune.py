"""`bigmodel tune` without a GPU: the search, with a clock that the tests make up and kernels in Triton's interpreter,
and the command. No launch's speed is tested."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from bigmodel_kernels import tuned_launches
from bigmodel_kernels.tuned_launches import ENVIRONMENT, load, path_of

triton = pytest.importorskip("triton", reason="the package triton, whose launches are tuned, is not installed")

from tuned import CPU, IDENTITY, state  # noqa: E402, F401

from bigmodel_kernels.testing import AttentionCase, LinearCase  # noqa: E402
from bigmodel_kernels.triton import attention_launch, choice, launch  # noqa: E402
from bigmodel_kernels.triton.launch import ProductLaunch  # noqa: E402
from bigmodel_kernels.tuning import problems as tuning_problems  # noqa: E402
from bigmodel_kernels.tuning.candidates import candidates  # noqa: E402
from bigmodel_kernels.tuning.device import Limits, measured_device  # noqa: E402
from bigmodel_kernels.tuning.problems import Problem, attention_call, problems, product_call  # noqa: E402
from bigmodel_kernels.tuning.search import tune  # noqa: E402

interpreted = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is not set, and there may be no device to run on"
)
LIMITS = Limits(90, 227 * 1024)


# Candidates and problems


@pytest.mark.parametrize("capability, kib", [(75, 64), (80, 163), (86, 99), (90, 227), (100, 227), (120, 99)])
@pytest.mark.parametrize("arithmetic", ["half", "ieee", "tf32"])
def test_candidates_are_more_than_the_table_and_fit(capability, kib, arithmetic):
    limits = Limits(capability, kib * 1024)
    for kind in ("plain", "epilogue", "gradient", "derivative", "pair"):
        found = candidates(kind, arithmetic, None, limits)
        table = launch.product_launches(capability, kind, arithmetic)
        assert len(set(found) | set(table)) > len(table) + 10 and len(set(found)) == len(found)
        bytes_of = {"half": 2, "ieee": 4, "tf32": 4}[arithmetic]
        for each in found:
            tiles = each.num_stages - (not 90 <= capability < 120)
            assert tiles * each.block_k * (each.block_m + each.block_n) * bytes_of <= kib * 1024
    for name in attention_launch.PASSES:
        for features in (16, 64, 128):
            found = candidates(name, arithmetic, features, limits)
            assert len(found) >= 10 and len(set(found)) == len(found), (name, features, len(found))
            assert all(each.num_warps in (4, 8) for each in found)


def test_wide_heads_leave_candidates():
    for name in attention_launch.PASSES:
        assert candidates(name, "half", 256, Limits(86, 99 * 1024)), name


def test_problems_cover_what_the_ops_launch():
    found = problems(dtypes=("bf16", "fp32"))
    for dtype in ("bf16", "fp32"):
        launches = {each.launch for each in found if each.dtype == dtype}
        assert launches == {"plain", "epilogue", "gradient", "derivative", "pair", *attention_launch.PASSES}
    assert len(problems(dtypes=("bf16", "fp16"))) == len(problems()), "bf16 and fp16 share their launches"
    assert len(problems(("attention",), head_dims=(80, 128))) == 4, "as do heads that are padded to the same size"
    assert {each.op for each in problems(("linear",))} == {"linear"}
    for each in problems(("attention", "attention_weights")):
        masks = {getattr(check, "attention", check).mask for check in each.checks}
        assert masks == {None, "float"} | ({"bool"} if each.launch != "grad_mask" else set()), each


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ops": ("add_norm",)}, "[tune] 'add_norm' is no op that can be tuned; expected one of attention"),
        ({"dtypes": ("fp8",)}, "[tune] 'fp8' is no dtype that can be tuned; expected one of bf16"),
        ({"head_dims": (0,)}, "[tune] head_dim is 0, expected 1 to 512"),
        ({"rows": (0,)}, "[tune] rows is 0, expected at least 1"),
    ],
)
def test_unknown_names_and_sizes(options, message):
    with pytest.raises(ValueError) as error:
        problems(**options)
    assert str(error.value).startswith(message)


# The search


def linear_problem(kind="plain") -> Problem:
    checks = (LinearCase("small", (5,), 33, 31), LinearCase("even", (16,), 32, 16))
    call = partial(product_call, kind, torch.bfloat16, 20, 24, 40)
    return Problem("linear", "bf16", kind, "20x24x40", None, checks, call)


def attention_problem(name) -> Problem:
    checks = (AttentionCase("small", batch=1, q_len=9, kv_len=13, head_dim=16, mask="float", causal=True),)
    call = partial(attention_call, name, torch.float16, 16, batch=1, heads=1, length=24)
    return Problem("attention", "fp16", name, "head_dim 16", 16, checks, call)


class Clock:
    """A timer that runs the call and makes up its time, by which launch the call asks for."""

    def __init__(self, times):
        self.times, self.timed = times, []

    def __call__(self, call):
        call()
        ((_, used),) = choice._State.asked.items()
        self.timed.append(used)
        return self.times.get(used, 10.0)


def search(problem, listed, times, **options):
    clock = Clock(times)
    listing = options.pop("candidates_of", lambda *arguments: listed)
    (result,) = tune([problem], CPU, IDENTITY, LIMITS, timer=clock, candidates_of=listing, **options)
    return result, clock


@interpreted
def test_the_fastest_candidate_wins_is_kept_and_is_launched(monkeypatch):
    slow, fast = ProductLaunch(16, 16, 16, 1, 1), ProductLaunch(32, 16, 16, 1, 1)
    seen = []
    result, clock = search(
        linear_problem(),
        [slow, fast, slow],
        {slow: 20.0, fast: 5.0},
        on_problem=lambda problem, total: seen.append((str(problem), total)),
        on_candidate=lambda: seen.append("done"),
    )
    assert (result.launch, result.milliseconds, result.default_milliseconds) == (fast, 5.0, 10.0)
    assert result.default == launch._INTERPRETED and result.tried == 3 and not result.failures
    assert seen == [("linear plain 20x24x40 bf16", 3), "done", "done"]
    assert clock.timed[:3] == [result.default, slow, fast], "each once, then the best in turns"
    assert clock.timed[3:6] == clock.timed[6:9] == [result.default, fast, slow]

    entry = load(IDENTITY)[result.key]
    assert (entry.launch, entry.milliseconds) == (dataclasses.asdict(fast), 5.0)
    # The next launch of that size is the winner's, and of no other.
    choice.use_measured(lambda device: {k: tuned_launches.launch_of(each) for k, each in load(IDENTITY).items()})
    used = []
    original = launch.product_launch
    monkeypatch.setattr(
        "bigmodel_kernels.triton.product.product_launch", lambda *a: used.append(original(*a)) or used[-1]
    )
    import bigmodel_kernels as bmk

    x, weight = torch.randn(20, 40).bfloat16(), torch.randn(24, 40).bfloat16()
    ours = bmk.linear(x, weight, backend="triton")
    assert used == [fast]
    choice.use_measured(None)
    torch.testing.assert_close(ours, bmk.linear(x, weight, backend="triton"))
    assert used == [fast, launch._INTERPRETED]


@interpreted
@pytest.mark.parametrize("name", ["forward", "grad_key_value", "grad_query", "grad_mask", "weights"])
def test_every_pass_of_attention_can_be_tuned(name):
    fast = attention_launch.Launch(16, 16, 1, 1)
    problem = attention_problem(name)
    if name == "weights":
        from bigmodel_kernels.testing import AttentionWeightsCase

        problem = dataclasses.replace(problem, checks=tuple(map(AttentionWeightsCase, problem.checks)))
    result, _ = search(problem, [fast], {fast: 1.0})
    assert result.launch == fast and result.key == (name, "half", 16) and not result.failures


@interpreted
@pytest.mark.parametrize("kind", ["plain", "epilogue", "derivative", "gradient", "pair"])
def test_every_kind_of_product_can_be_tuned(kind, monkeypatch):
    """With the problem's own checks, on one size."""
    (problem,) = [
        each for each in problems(("linear", "feed_forward"), width=24, hidden=24, rows=(40,)) if each.launch == kind
    ]
    fast = ProductLaunch(128, 64, 64, 1, 1)
    result, _ = search(dataclasses.replace(problem, checks=problem.checks[1:]), [fast], {fast: 1.0})
    assert result.launch == fast and result.key[:2] == (kind, "half") and not result.failures


@interpreted
def test_a_wrong_candidate_cannot_win(monkeypatch):
    wrong, right = ProductLaunch(16, 16, 16, 1, 1), ProductLaunch(32, 16, 16, 1, 1)
    from bigmodel_kernels.triton import linear

    original = linear.run

    def run(kernel, grid, *arguments, **options):
        original(kernel, grid, *arguments, **options)
        if options["BLOCKS"][0] == wrong.block_m:
            arguments[5].data[0, 0] += 1

    monkeypatch.setattr(linear, "run", run)
    result, clock = search(linear_problem(), [wrong, right], {wrong: 1.0, right: 5.0})
    assert result.launch == right and result.failures == {"wrong result": 1}
    assert clock.timed.count(wrong) == 1, "no finalist"


@interpreted
def test_a_wrong_gradient_cannot_win(monkeypatch):
    wrong = attention_launch.Launch(16, 16, 1, 1)
    original = attention_launch.Call.run

    def run(call):
        original(call)
        if call.name == "grad_query" and call.arguments[-4:-2] == (16, 16):
            call.arguments[2].data.mul_(2)

    monkeypatch.setattr(attention_launch.Call, "run", run)
    result, clock = search(attention_problem("grad_query"), [wrong], {wrong: 1.0})
    assert result.launch == result.default and result.failures == {"wrong result": 1}
    assert clock.timed.count(wrong) == 1, "no finalist"


@interpreted
def test_only_what_may_win_is_checked(monkeypatch):
    from bigmodel_kernels.tuning import search as module

    checked = []
    monkeypatch.setattr(module, "_is_right", lambda *arguments: checked.append(choice._State.candidate) or True)
    listed = [ProductLaunch(16, 16, size, 1, 1) for size in (16, 32, 64, 128, 256)]
    times = {each: 5.0 + number for number, each in enumerate(listed)}
    result, clock = search(linear_problem(), listed, times)
    assert result.launch == listed[0] and checked == listed[:3]
    assert [clock.timed.count(each) for each in listed] == [6, 6, 6, 1, 1]


@interpreted
def test_a_refused_candidate_is_counted_and_others_go_on(monkeypatch):
    large, small = ProductLaunch(128, 128, 16, 1, 1), ProductLaunch(16, 16, 16, 1, 1)
    from bigmodel_kernels.triton import linear

    original = linear.run

    def run(kernel, grid, *arguments, **options):
        if options["BLOCKS"][0] == large.block_m:
            raise triton.runtime.errors.OutOfResources(300000, 232448, "shared memory")
        original(kernel, grid, *arguments, **options)

    monkeypatch.setattr(linear, "run", run)
    result, _ = search(linear_problem(), [large, small], {small: 5.0})
    assert result.launch == small and result.failures == {"OutOfResources": 1}


@interpreted
def test_any_other_error_ends_the_search_and_keeps_what_was_found(monkeypatch):
    fast = ProductLaunch(16, 16, 16, 1, 1)

    def broken(call):
        raise RuntimeError("an illegal memory access was encountered")

    clock = Clock({fast: 1.0})
    found = tune([linear_problem()], CPU, IDENTITY, LIMITS, timer=clock, candidates_of=lambda *a: [fast])
    assert next(found).launch == fast
    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(tune([linear_problem("epilogue")], CPU, IDENTITY, LIMITS, timer=broken, candidates_of=lambda *a: [fast]))
    assert [each.launch for each in load(IDENTITY).values()] == [dataclasses.asdict(fast)]


@interpreted
def test_what_is_within_the_noise_leaves_the_default():
    near = ProductLaunch(16, 16, 16, 1, 1)
    result, _ = search(linear_problem(), [near], {near: 9.9})
    assert result.launch == result.default and result.milliseconds == result.default_milliseconds == 10.0


@interpreted
def test_nothing_is_measured_over_a_damaged_table():
    path_of(IDENTITY).write_text("{")
    with pytest.raises(ValueError, match="is no table of launches"):
        search(linear_problem(), [], {}, candidates_of=lambda *a: pytest.fail("the search began"))


@interpreted
def test_nothing_is_measured_where_nothing_can_be_kept(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^\[tune\] .* cannot be written"):
        search(linear_problem(), [], {}, folder=tmp_path / "file", candidates_of=lambda *a: pytest.fail("it began"))


@interpreted
def test_torchs_switch_is_as_it_was():
    before = torch.backends.cuda.matmul.fp32_precision
    problem = dataclasses.replace(
        linear_problem(), dtype="tf32", call=partial(product_call, "plain", torch.float32, 20, 24, 40)
    )
    with pytest.raises(ValueError, match="are 'ieee' here, expected 'tf32'"):
        search(problem, [], {})
    assert torch.backends.cuda.matmul.fp32_precision == before


@pytest.mark.skipif(
    not torch.cuda.is_available() or triton.knobs.runtime.interpret, reason="torch sees no CUDA device to measure on"
)
def test_on_a_device_with_its_own_clock():
    from bigmodel_kernels.tuning.device import limits_of

    device = measured_device()
    identity, limits = tuned_launches.identity_of(device), limits_of(device)
    wanted = problems(("attention", "linear"), ("fp16",), (64,), (512,), 512, 512)
    results = list(tune(wanted, device, identity, limits, candidates_of=lambda *a: candidates(*a)[::25]))
    assert [each.problem for each in results] == wanted
    for each in results:
        assert 0 < each.milliseconds <= each.default_milliseconds and "wrong result" not in each.failures
    choice.use_measured(tuned_launches.launches_on)
    for each in results:
        assert choice.choose(device, each.key, None, lambda: None) == each.launch


# The command


@pytest.mark.parametrize(
    "environment, message",
    [
        ({}, "[tune] torch sees no CUDA device, and launches can only be measured on the device itself"),
        ({"TRITON_INTERPRET": "1"}, "[tune] TRITON_INTERPRET is set, and the times of interpreted kernels say nothing"),
    ],
)
def test_without_a_device_the_command_says_why(environment, message):
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bigmodel_kernels.cli", "tune"]
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=clean | hidden | environment)
    assert result.returncode == 1 and message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr and not result.stdout


@pytest.mark.parametrize("index", [-1, 2])
def test_a_device_that_is_not_there(index, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=rf"^\[tune\] device is {index}, expected 0 to 1: torch sees 2 CUDA devices"):
        measured_device(index)
    assert measured_device(1) == torch.device("cuda", 1)


@pytest.fixture
def command(monkeypatch):
    """Runs `bigmodel tune` on a device that the test makes up, with two problems and one candidate."""
    from typer.testing import CliRunner

    from bigmodel_kernels import cli
    from bigmodel_kernels.tuning import device, search

    monkeypatch.setattr(device, "measured_device", lambda index: CPU)
    monkeypatch.setattr(device, "limits_of", lambda on: LIMITS)
    monkeypatch.setattr(tuned_launches, "identity_of", lambda on: IDENTITY)
    wanted = [linear_problem(), linear_problem("epilogue")]
    monkeypatch.setattr(tuning_problems, "problems", lambda *arguments: wanted)
    monkeypatch.setattr(torch.cuda, "device", lambda on: contextlib.nullcontext())

    def run(timer, *arguments):
        options = {"timer": timer, "candidates_of": lambda *arguments: [FAST]}
        monkeypatch.setattr(search, "tune", partial(tune, **options))
        result = CliRunner().invoke(cli.app, ["tune", *arguments], catch_exceptions=False)
        return result.exit_code, "".join(result.output.split())

    return run


FAST = ProductLaunch(16, 16, 16, 1, 1)


@interpreted
def test_the_command_prints_keeps_and_tells_where(command, tmp_path):
    folder = tmp_path / "elsewhere"
    arguments = ["--op", "linear", "--dtype", "bf16", "--head-dim", "64", "--folder", str(folder)]
    code, text = command(Clock({FAST: 2.0}), *arguments)
    assert code == 0, text
    assert "MeasuredonAGPU(80GB)" in text and "m16n16k16warps1" in text and "5.00x" in text
    assert f"export{ENVIRONMENT}={folder}" in text
    assert len(load(IDENTITY, folder)) == 2 and not load(IDENTITY)


@interpreted
def test_a_stopped_command_keeps_what_it_has(command):
    clock = Clock({FAST: 2.0})

    def timer(call):
        if len(clock.timed) == 12:  # two candidates, then five rounds of both
            raise KeyboardInterrupt
        return clock(call)

    code, text = command(timer)
    assert code == 130 and "Stoppedafter1of2problems" in text and "5.00x" in text
    assert [entry.launch for entry in load(IDENTITY).values()] == [dataclasses.asdict(FAST)]
