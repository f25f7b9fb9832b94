"""Every op test runs on every backend that can run here, and on every CPU target of this machine, in one process."""

import os

import pytest
import torch

import bigmodel_kernels as bmk

# (backend, CPU target): what a test with the `backend` fixture runs on. Triton: in numpy under TRITON_INTERPRET=1, for
# most tests' tensors are on the CPU; Triton and CUDA on a GPU, where op_check.py puts those of every case, under
# BIGMODEL_TEST_GPU=1.
CPU_DISPATCHES = [("cpu", target) for target in bmk.supported_cpu_targets()]
GPU = os.environ.get("BIGMODEL_TEST_GPU") == "1"
WANTED = {"triton": GPU or os.environ.get("TRITON_INTERPRET") == "1", "cuda": GPU}
GPU_DISPATCHES = [(name, None) for name, wanted in WANTED.items() if wanted and not bmk.info()["backends"][name]]
DISPATCHES = CPU_DISPATCHES + GPU_DISPATCHES

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


@pytest.fixture(params=DISPATCHES, ids=lambda dispatch: dispatch[1] or dispatch[0])
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
