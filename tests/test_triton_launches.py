"""The launches that `bigmodel tune` measured: what is kept on disk, when it is used, and what comes before it. All
without a GPU."""

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch

from bigmodel_kernels import backends, tuned_launches
from bigmodel_kernels.testing import ATTENTION_CASES, ATTENTION_VARLEN_CASES, FEED_FORWARD_CASES, LINEAR_CASES
from bigmodel_kernels.tuned_launches import ENVIRONMENT, Identity, load, path_of, save

triton = pytest.importorskip("triton", reason="the package triton, whose launches are tuned, is not installed")

from op_check import run_with_gradients  # noqa: E402
from tuned import CPU, ENTRY, FORWARD, IDENTITY, KEY, state  # noqa: E402, F401

from bigmodel_kernels.triton import attention_launch, choice, launch  # noqa: E402
from bigmodel_kernels.triton.attention_launch import INTERPRETER  # noqa: E402
from bigmodel_kernels.triton.attention_launch import attention_launch as ask_attention  # noqa: E402
from bigmodel_kernels.triton.launch import ProductLaunch, product_launch  # noqa: E402
from bigmodel_kernels.triton.product import Blocks  # noqa: E402

interpreted = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is not set, and there may be no device to run on"
)


# One call of each kind with few options.
PLAINEST = [
    next(case for case in ATTENTION_VARLEN_CASES if case.name == "ragged"),
    next(case for case in ATTENTION_VARLEN_CASES if case.name == "mask_float"),
    next(case for case in ATTENTION_CASES if case.name == "dropout"),
    next(case for case in LINEAR_CASES if case.name == "3x7x5"),
    next(case for case in FEED_FORWARD_CASES if case.name == "rows_130_hidden"),
]


# On disk


def test_what_was_saved_is_loaded():
    assert load(IDENTITY) == {}
    path = save(IDENTITY, [ENTRY])
    assert path == path_of(IDENTITY) and path.name.startswith("a-gpu-80-gb-sm-9-0-")
    save(IDENTITY, [FORWARD])
    assert load(IDENTITY) == {ENTRY.key: ENTRY, FORWARD.key: FORWARD}
    slower = dataclasses.replace(ENTRY, milliseconds=2.0)
    save(IDENTITY, [slower])
    assert load(IDENTITY)[KEY] == slower


def test_the_folder_can_be_named(tmp_path, monkeypatch):
    assert tuned_launches.default_folder() == tmp_path
    path = save(IDENTITY, [ENTRY], tmp_path / "other" / "place")
    assert path.parent == tmp_path / "other" / "place" and load(IDENTITY) == {}
    monkeypatch.delenv(ENVIRONMENT)
    assert "bigmodel_kernels" in tuned_launches.default_folder().parts


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Identity)])
def test_another_device_version_or_source_has_a_table_of_its_own(field):
    save(IDENTITY, [ENTRY])
    other = dataclasses.replace(IDENTITY, **{field: "another"})
    assert load(other) == {} and path_of(other) != path_of(IDENTITY)


def test_a_table_under_a_wrong_name_is_refused():
    path = save(IDENTITY, [ENTRY])
    other = dataclasses.replace(IDENTITY, torch="2.10.0")
    os.rename(path, path_of(other))
    with pytest.raises(ValueError, match=r"^\[tune\] .* not a table of this version, device and kernels"):
        load(other)


def test_any_change_of_a_kernel_changes_the_key(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    first = tuned_launches.source_digest.__wrapped__(tmp_path)
    (tmp_path / "a.py").write_text("x = 2\n")
    second = tuned_launches.source_digest.__wrapped__(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, tuned_launches.source_digest.__wrapped__(tmp_path)}) == 3


def damaged(change) -> str:
    content = json.loads(save(IDENTITY, [ENTRY]).read_text())
    change(content)
    return json.dumps(content)


DAMAGES = {
    "cut off": lambda: save(IDENTITY, [ENTRY]).read_text()[:-20],
    "empty": lambda: "",
    "no text": lambda: "\udcff",
    "a list": lambda: "[]",
    "another format": lambda: damaged(lambda content: content.update(format="bigmodel_kernels launches 0")),
    "no launches": lambda: damaged(lambda content: content.pop("launches")),
    "a field missing": lambda: damaged(lambda content: content["launches"][0]["launch"].pop("block_k")),
    "no power of two": lambda: damaged(lambda content: content["launches"][0]["launch"].update(block_m=48)),
    "not a number": lambda: damaged(lambda content: content["launches"][0]["launch"].update(block_m="64")),
    "too large": lambda: damaged(lambda content: content["launches"][0]["launch"].update(num_warps=2048)),
    "no time": lambda: damaged(lambda content: content["launches"][0].update(milliseconds=None)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_refused_said_and_not_used(damage, monkeypatch):
    path_of(IDENTITY).write_text(DAMAGES[damage](), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=r"^\[tune\] .* is no table of launches .* delete the file"):
        load(IDENTITY)
    with pytest.raises(ValueError, match="is no table of launches"):
        save(IDENTITY, [FORWARD])
    monkeypatch.setattr(tuned_launches, "identity_of", lambda device: IDENTITY)
    choice.use_measured(tuned_launches.launches_on)
    device = torch.device("cuda", 0)
    with pytest.warns(RuntimeWarning, match=r"^\[tune\] .* Until then the default launches are used"):
        assert choice.choose(device, KEY, None, lambda: "default") == "default"
    assert choice.choose(device, KEY, None, lambda: "default") == "default"  # and says so once
    assert tuned_launches.describe(device).startswith("default launches: [tune]")


def test_a_folder_that_cannot_be_read_stops_no_launch(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "file"))
    monkeypatch.setattr(tuned_launches, "identity_of", lambda device: IDENTITY)
    with pytest.raises(ValueError, match=r"^\[tune\] .* cannot be read: NotADirectoryError"):
        load(IDENTITY)
    with pytest.raises(ValueError, match=r"^\[tune\] .* cannot be written"):
        save(IDENTITY, [ENTRY])
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        assert tuned_launches.launches_on(torch.device("cuda", 0)) == {}


def add(folder, numbers):
    for number in numbers:
        key = ("plain", "half", 2**number, 64, 64)
        save(IDENTITY, [dataclasses.replace(ENTRY, key=key)], folder)


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    """And a reader meanwhile sees whole tables only: load raises for others."""
    context = multiprocessing.get_context("spawn")
    numbers = range(0, 40, 2), range(1, 40, 2)
    writers = [context.Process(target=add, args=(tmp_path, each)) for each in numbers]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        load(IDENTITY, tmp_path)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert {key[2] for key in load(IDENTITY, tmp_path)} == {2**number for number in range(40)}
    assert not list(tmp_path.glob("*.part"))


def test_an_interrupted_write_leaves_the_previous_table(tmp_path, monkeypatch):
    save(IDENTITY, [ENTRY])

    def full_disk(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ValueError, match=r"^\[tune\] .* cannot be written: OSError: no space left on device"):
        save(IDENTITY, [FORWARD])
    assert load(IDENTITY) == {KEY: ENTRY} and not list(tmp_path.glob("*.part"))


def test_what_is_used_is_told(monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(tuned_launches, "identity_of", lambda device: IDENTITY)
    assert tuned_launches.describe(device) == "default launches; `bigmodel tune` would measure on this device"
    path = save(dataclasses.replace(IDENTITY, triton="3.6.0"), [ENTRY])
    assert tuned_launches.describe(device).startswith("default launches: what was measured here was of other versions")
    path = save(IDENTITY, [ENTRY])
    assert tuned_launches.describe(device) == f"1 launches measured on this device, the others default ({path})"
    assert backends._launches(device) == tuned_launches.describe(device)
    explanation = backends.Explanation("linear", "triton", "chosen automatically", {}, tuned_launches.describe(device))
    assert f"launches: 1 launches measured on this device, the others default ({path})" in str(explanation)


@interpreted
def test_explain_tells_of_launches_where_triton_runs_alone():
    import bigmodel_kernels as bmk

    x = torch.randn(2, 2)
    assert "launches: the interpreter's own, small ones" in str(bmk.explain("linear", x, x, backend="triton"))
    assert "launches" not in str(bmk.explain("linear", x, x))


def test_info_shows_the_launches_of_each_device(monkeypatch):
    from typer.testing import CliRunner

    import bigmodel_kernels as bmk
    from bigmodel_kernels import cli

    facts = bmk.info()
    monkeypatch.setattr(bmk, "info", lambda: facts | {"launches": {"cuda:1": "3 launches measured"}}, raising=False)
    result = CliRunner().invoke(cli.app, ["info"], catch_exceptions=False)
    assert "triton on cuda:1" in result.output and "3 launches measured" in result.output


# Which launch runs


def ask(device=CPU) -> ProductLaunch:
    return product_launch(device, "plain", "half", 60, 50, 40)


@interpreted
def test_a_measured_launch_comes_before_the_default_and_after_an_override():
    default = ask()
    measured, chosen, tried = (ProductLaunch(size, 16, 16, 1, 1) for size in (16, 32, 64))
    choice.use_measured(lambda device: {KEY: measured})
    assert ask() == measured
    assert product_launch(CPU, "plain", "half", 60, 50, 400) == default, "another size"
    launch.override(80, "plain", "half", 60, 50, 40, chosen)
    assert ask() == chosen
    with choice.trying("plain", tried) as asked:
        assert ask() == tried
    assert asked == {KEY: tried}
    with choice.trying("plain", None):
        assert ask() == default, "neither what was set nor what was measured"
    assert ask() == chosen
    with pytest.raises(RuntimeError, match="inside"), choice.trying("plain", tried):
        raise RuntimeError("inside")
    assert ask() == chosen


@interpreted
def test_attention_has_the_same_order():
    def ask():
        return ask_attention("forward", INTERPRETER, 64, "half")

    default = ask()
    measured, chosen = (attention_launch.Launch(size, 16, 1, 1) for size in (16, 64))
    choice.use_measured(lambda device: {("forward", "half", 64): measured})
    assert ask() == measured
    assert ask_attention("forward", INTERPRETER._replace(measured_on=None), 64, "half") == default, "the audit"
    attention_launch.override("forward", 80, 64, "half", chosen)
    assert ask() == chosen
    attention_launch.override("forward", 80, 64, "half", None)
    assert ask() == measured


def test_the_table_of_a_device_is_read_once_at_its_first_launch(monkeypatch):
    read = []
    monkeypatch.setattr(tuned_launches, "identity_of", lambda device: read.append(device) or IDENTITY)
    save(IDENTITY, [ENTRY])
    choice.use_measured(tuned_launches.launches_on)
    assert not read
    device = torch.device("cuda", 0)
    for _ in range(3):
        assert choice.choose(device, KEY, None, lambda: None) == ProductLaunch(32, 64, 16, 2, 1)
    assert read == [device]
    assert choice.choose(CPU, KEY, None, lambda: "default") == "default", "no table is for the interpreter"


def test_loading_the_backend_turns_the_tables_on_and_nothing_searches():
    program = """
import sys, torch
import bigmodel_kernels as bmk
bmk.linear(torch.ones(2, 2), torch.ones(2, 2), backend="triton")
from bigmodel_kernels import tuned_launches
from bigmodel_kernels.triton import choice
assert choice._State.source is tuned_launches.launches_on
assert not [name for name in sys.modules if name.startswith("bigmodel_kernels.tuning")]
"""
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"TRITON_INTERPRET": "1"})


class Sizes(NamedTuple):
    data: torch.Tensor
    count: int


class _Kernel:
    """Stands for a compiled kernel with one run-time and one compile-time argument, and records its launch."""

    arg_names, constexprs = ["sizes", "BLOCKS"], [1]

    def __getitem__(self, grid):
        return lambda *arguments, **named: self.launched.append(arguments + tuple(named.values()))

    def __init__(self):
        self.launched = []


def test_fields_of_compile_time_tuples_are_constants_before_triton_3_8_too(monkeypatch):
    """Those versions hand a field out bare, and refuse a bare number in a shape and a bare string in a call."""
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    blocks = Blocks(64, 32, 16, 8, True, False, True, False, "ieee")
    kernel = _Kernel()
    launch.run(kernel, (1,), Sizes(torch.ones(1), 4), blocks)
    launch.run(kernel, (1,), Sizes(torch.ones(1), 4), BLOCKS=blocks)
    for sizes, constant, *_ in kernel.launched:
        assert type(sizes.count) is int, "a run-time value stays one"
        assert isinstance(constant, Blocks)
        fields = {name: getattr(constant, name) for name in constant._fields}
        assert all(isinstance(field, bool | triton.language.constexpr) for field in fields.values()), fields
        assert tuple(getattr(field, "value", field) for field in constant) == blocks
    first, second = (constant for _, constant, *_ in kernel.launched)
    assert first is second, "so that Triton finds the compiled kernel at once"


def test_the_audit_compiles_what_is_launched():
    if triton.knobs.runtime.interpret:
        pytest.skip("interpreted kernels have no compile-time arguments to look at")
    from bigmodel_kernels.audit import cases

    tuples = [each for case in cases("sm_80") for each in case.constexprs.values() if isinstance(each, tuple)]
    assert {type(each).__name__ for each in tuples} == {"Blocks", "Features"}
    for each in tuples:
        assert all(isinstance(field, bool | triton.language.constexpr) for field in each), each


def _tuples(arguments: tuple) -> list[tuple]:
    inner = [each for each in arguments if isinstance(each, tuple)]
    return inner + [found for each in inner for found in _tuples(each)]


def test_tuples_of_tuples_hold_nothing_else():
    """Triton 3.6 forgets in loops which fields of others are compile-time constants."""
    from bigmodel_kernels.triton.attention_audit import _OPTIONS, _with_option

    for option in _OPTIONS:
        for _, call in _with_option(option, torch.bfloat16, 64, INTERPRETER):
            for each in _tuples(call.arguments):
                assert len({isinstance(field, tuple) for field in each}) == 1, each


@interpreted
@pytest.mark.parametrize("case", PLAINEST, ids=lambda case: f"{type(case).__name__}-{case.name}")
def test_helpers_return_no_tuple_with_none(case, monkeypatch):
    """Triton 3.6 compiles none that does. Where options are absent most is None."""
    from triton.runtime.interpreter import InterpretedFunction

    call, returned = InterpretedFunction.__call__, []

    def noted(function, *arguments, **named):
        result = call(function, *arguments, **named)
        if isinstance(result, tuple):
            returned.append((function.fn.__name__, result))
        return result

    monkeypatch.setattr(InterpretedFunction, "__call__", noted)
    run_with_gradients(case, case.inputs(torch.float32), torch.float32, "triton")
    assert returned
    for name, result in returned:
        for each in (result, *_tuples(result)):
            assert all(field is not None for field in each), name


@pytest.mark.parametrize("fewest", [8, 16])
def test_tables_sum_over_as_many_terms_as_triton_multiplies(fewest, monkeypatch):
    """Triton before 3.8 refuses true fp32 products of fewer than 16 terms, and later ones those of fewer than 8."""
    monkeypatch.setattr(attention_launch, "_FEWEST_TERMS", fewest)
    for capability in (75, 80, 86, 89, 90, 100, 120):
        for features in (64, 128, 256, 512):
            for arithmetic in ("ieee", "half", "tf32"):
                for given in ((), (True,), (True, False, True), (True, True, True)):
                    table = {
                        name: attention_launch.table_launch(name, capability, features, arithmetic, *given)
                        for name in attention_launch.PASSES
                    }
                    terms = table["grad_key_value"].block_m, table["grad_query"].block_n, table["forward"].block_n
                    assert min(terms) >= fewest
