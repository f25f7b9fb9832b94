"""Every op test runs on every backend that can run here, and on every CPU target of this machine, in one process."""

import os

import pytest
import torch

import bigmodel_kernels as bmk
from bigmodel_kernels.interpreter import interpreted

# (backend, CPU target): what a test with the `backend` fixture runs on. Triton: in numpy under TRITON_INTERPRET=1, for
# most tests' tensors are on the CPU; Triton and CUDA on a GPU, where op_check.py puts those of every case, under
# BIGMODEL_TEST_GPU=1.
CPU_DISPATCHES = [("cpu", target) for target in bmk.supported_cpu_targets()]
ON_GPU = os.environ.get("BIGMODEL_TEST_GPU") == "1"
WANTED = {"triton": ON_GPU or interpreted(), "cuda": ON_GPU}
MISSING = {name: bmk.info()["backends"][name] for name in WANTED}
DISPATCHES = CPU_DISPATCHES + [(name, None) for name in WANTED if WANTED[name] and not MISSING[name]]
# Without a GPU the tests that were asked to run on one are there, and say why they do not.
SKIPPED = [
    pytest.param((name, None), marks=pytest.mark.skip(reason="; ".join(MISSING[name])))
    for name in WANTED
    if ON_GPU and MISSING[name]
]

if interpreted() and MISSING["triton"]:
    raise pytest.UsageError(f"TRITON_INTERPRET=1, but no kernel can run: {'; '.join(MISSING['triton'])}")

_collected: set[tuple] = set()
_dispatched: set[tuple] = set()


def pytest_report_header(config):
    compiled = bmk.info()["build"]["cpu_targets"]
    lines = [f"bigmodel_kernels: torch {torch.__version__}, {torch.get_num_threads()} threads"]
    for target in compiled:
        runs = target in bmk.supported_cpu_targets()
        lines.append(
            f"  CPU target {target}: {'tested' if runs else 'not tested, this processor lacks its instructions'}"
        )
    for name, reasons in bmk.info()["backends"].items():
        if reasons:
            lines.append(f"  backend {name}: not tested, {'; '.join(reasons)}")
    return lines


@pytest.fixture(autouse=True, scope="session")
def patched_once_per_launch():
    """Triton's interpreter exchanges the functions of triton.language before a launch, and again at every call of a
    helper, which finds it done and takes much of the time. Here a launch does it once for each module that it calls."""
    if not interpreted():
        yield
        return
    from triton.runtime import interpreter

    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    done = set()

    def patch_once(fn):
        if id(fn.__globals__) not in done:
            done.add(id(fn.__globals__))
            return patch(fn)

    def launch_afresh(*arguments, **options):
        done.clear()
        return launch(*arguments, **options)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
        monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch_afresh)
        yield


@pytest.fixture(params=DISPATCHES + SKIPPED, ids=lambda dispatch: dispatch[1] or dispatch[0])
def backend(request):
    """The backend's name, with the CPU target forced for the length of the test."""
    name, target = request.param
    previous = bmk.cpu_target()
    if target is not None:
        bmk.set_cpu_target(target)
        assert bmk.cpu_target() == target
    yield name
    assert target is None or bmk.cpu_target() == target, "the test changed the CPU target"
    bmk.set_cpu_target(previous)
    _dispatched.add(request.param)


def pytest_collection_finish(session):
    for item in session.items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and "backend" in callspec.params and callspec.params["backend"] in DISPATCHES:
            _collected.add(callspec.params["backend"])


def pytest_sessionfinish(session, exitstatus):
    """A target whose tests were collected but never ran would pass silently: make it fail."""
    distributed = hasattr(session.config, "workerinput") or session.config.getoption("numprocesses", None)
    missing = _collected - _dispatched
    if (
        missing
        and not distributed
        and not (session.shouldstop or session.shouldfail)
        and not session.config.option.collectonly
    ):
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line(f"never dispatched: {sorted(str(each) for each in missing)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
