"""The choice of backends: named ones never fall back, automatic choice explains itself."""

import importlib.metadata
import os
import subprocess
import sys
import threading

import pytest
import torch

import bigmodel_kernels as bmk
from bigmodel_kernels import backends, gpu_choice, reference


@pytest.mark.parametrize("name", backends.BACKENDS)
def test_available_or_says_why_not(name):
    reasons = backends.unsupported_reasons("linear", name)
    assert bmk.info()["backends"][name] == reasons
    if reasons:
        x = torch.randn(2, 4)
        with pytest.raises(RuntimeError, match=rf"^\[linear\] the {name} backend cannot run this: {reasons[0]}"):
            bmk.linear(x, x, backend=name)
        pytest.skip(f"{name} cannot run here: {'; '.join(reasons)}")


def test_cpu_and_reference_are_available():
    assert backends.unsupported_reasons("attention", "cpu") == []
    assert backends.unsupported_reasons("attention", "reference") == []


def test_every_reported_target_is_tested():
    """The `backend` fixture covers what this machine runs, and set_cpu_target refuses the rest by name."""
    from conftest import DISPATCHES

    assert [target for name, target in DISPATCHES if name == "cpu"] == bmk.supported_cpu_targets()
    assert "baseline" in bmk.supported_cpu_targets()
    active = bmk.cpu_target()
    for target in set(bmk.info()["build"]["cpu_targets"]) - set(bmk.supported_cpu_targets()):
        with pytest.raises(ValueError, match=target):
            bmk.set_cpu_target(target)
    with pytest.raises(ValueError, match="nonsense"):
        bmk.set_cpu_target("nonsense")
    assert bmk.cpu_target() == active


def test_automatic_choice():
    cpu = torch.device("cpu")
    assert backends.resolve("linear", cpu, torch.float32) is torch.ops.bigmodel
    assert backends.resolve("linear", cpu, torch.bfloat16) is torch.ops.bigmodel
    assert backends.resolve("linear", cpu, torch.float64) is reference
    if not torch.cuda.is_available():  # else the table decides: the test of it is below
        assert backends.resolve("linear", torch.device("cuda"), torch.float32) is reference
    assert backends.resolve("linear", torch.device("meta"), torch.float32) is torch.ops.bigmodel


def test_named_backend_never_falls_back():
    x = torch.randn(2, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"^\[linear\] the cpu backend cannot run this: the dtype is torch.float64"):
        bmk.linear(x, x, backend="cpu")
    with bmk.use_backend("cpu"), pytest.raises(RuntimeError, match="float64"):
        bmk.linear(x, x)


def test_use_backend_nests_and_restores():
    cpu = torch.device("cpu")

    def current():
        return backends.resolve("linear", cpu, torch.float32)

    with bmk.use_backend("reference"):
        assert current() is reference
        with bmk.use_backend(None):
            assert current() is torch.ops.bigmodel
        with pytest.raises(KeyError), bmk.use_backend("cpu"):
            raise KeyError
        assert current() is reference
        assert backends.resolve("linear", cpu, torch.float32, "cpu") is torch.ops.bigmodel
    assert current() is torch.ops.bigmodel


def test_use_backend_is_per_thread():
    seen = []
    with bmk.use_backend("reference"):
        thread = threading.Thread(
            target=lambda: seen.append(backends.resolve("linear", torch.device("cpu"), torch.float32))
        )
        thread.start()
        thread.join()
    assert seen == [torch.ops.bigmodel]


def test_compiled_functions_follow_use_backend():
    x, weight = torch.randn(3, 5), torch.randn(4, 5)
    graphs = []

    def capture(graph, inputs):
        graphs.append(" ".join(str(node.target) for node in graph.graph.nodes))
        return graph

    compiled = torch.compile(lambda: bmk.linear(x, weight), fullgraph=True, backend=capture)
    compiled()
    with bmk.use_backend("reference"):
        compiled()
    assert "bigmodel" in graphs[0] and "bigmodel" not in graphs[1]


def test_marked_for_compilers_as_torch_marks():
    def function():
        return 1

    assert vars(backends._constant_in_graphs(lambda: 1)) == vars(torch.compiler.assume_constant_result(function))


def test_a_first_call_does_not_import_the_compiler():
    code = """
import sys, torch
before = set(sys.modules)
import bigmodel_kernels as bmk
x = torch.ones(1, 1, 2, 4)
bmk.attention(x, x, x)
print([name for name in ("torch._dynamo", "sympy", "triton") if name in set(sys.modules) - before])
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_explain():
    x = torch.randn(1, 1, 2, 4)
    automatic = bmk.explain("attention", x, x, x, causal=True)
    assert automatic.backend == "cpu" and automatic.reasons["cpu"] == []
    assert "attention runs on: cpu" in str(automatic) and f"cuda: {automatic.reasons['cuda'][0]}" in str(automatic)
    wide = bmk.explain("attention", x.double())
    assert wide.backend == "reference" and "float64" in wide.reasons["cpu"][0]
    named = bmk.explain("attention", x.double(), backend="cpu")
    assert named.backend is None and "never falls back" in str(named)
    with bmk.use_backend("reference"):
        assert bmk.explain("attention", x).backend == "reference"


def test_info():
    info = bmk.info()
    assert info["torch"] == torch.__version__
    assert info["cpu_target"] in info["supported_cpu_targets"]
    assert info["backends"]["cpu"] == []


def test_meta_tensors_have_shapes_without_data():
    x = torch.empty(2, 3, 5, 8, device="meta")
    assert bmk.attention(x, x, x).shape == (2, 3, 5, 8)
    assert bmk.linear(x, torch.empty(7, 8, device="meta"), activation="gelu").shape == (2, 3, 5, 7)


class TestTriton:
    """Triton is imported only where it can run; interpreted, it serves who names it, and is never chosen."""

    @staticmethod
    def run(code: str, **environment: str) -> str:
        header = "import sys, torch, bigmodel_kernels as bmk; x = torch.ones(2, 3); "
        variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
        command = [sys.executable, "-c", header + code]
        return subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout.strip()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
    def test_is_not_imported_without_a_gpu(self):
        code = "bmk.linear(x, x); print(bmk.explain('linear', x)); print('bigmodel_kernels.triton' in sys.modules)"
        output = self.run(code)
        assert "triton: torch sees no CUDA device, and TRITON_INTERPRET is not set" in output
        assert output.endswith("False")

    def test_missing_package_is_a_reason(self):
        code = (
            "import importlib.util as u; find = u.find_spec; "
            "u.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest); "
            "print(bmk.explain('linear', x)); bmk.linear(x, x)"
        )
        assert "triton: the package triton is not installed" in self.run(code, TRITON_INTERPRET="1")

    def test_interpreted_serves_who_names_it(self):
        pytest.importorskip("triton")
        code = (
            "print(bmk.explain('linear', x).backend, torch.equal(bmk.linear(x, x, backend='triton'), x @ x.t())); "
            "print(bmk.explain('linear', x.double(), backend='triton'))"
        )
        output = self.run(code, TRITON_INTERPRET="1")
        assert output.startswith("cpu True")
        assert "linear runs on: nothing (triton was named" in output and "float64" in output

    def test_weights_are_not_packed_for_it(self):
        pytest.importorskip("triton")
        code = (
            "from bigmodel_kernels.ops import packed_weights; x = torch.randn(17, 130); w = torch.randn(140, 130)\n"
            "for _ in range(3): bmk.linear(x, w, backend='triton')\n"
            "print(packed_weights.packed_bytes())"
        )
        assert self.run(code, TRITON_INTERPRET="1") == "0"


@pytest.mark.parametrize("op", backends.OPS)
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("elements", [None, 1, 1 << 40])
def test_a_row_of_the_table_fits_every_call(op, capability, elements):
    assert gpu_choice.choose(op, capability, elements).backend in ("cuda", "triton")


def test_automatic_choice_between_the_gpu_backends_follows_the_table(monkeypatch):
    monkeypatch.setattr(backends, "_reasons", lambda name, device, dtype: [])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    device = torch.device("cuda")
    for op in backends.OPS:
        for elements in (1, 1 << 30):
            chosen = backends.resolve(op, device, torch.bfloat16, elements=elements)
            row = gpu_choice.choose(op, (9, 0), elements)
            assert chosen is (backends.TRITON_OPS if row.backend == "triton" else backends.CPU_OPS)


@pytest.mark.parametrize(
    "architectures, runs, does_not_run",
    [
        ("80-real;90;120", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1)], [(7, 5)]),
        ("86-real", [(8, 6), (8, 9)], [(7, 5), (8, 0), (9, 0), (12, 0)]),
        ("75", [(7, 5), (8, 0), (12, 0)], [(7, 0)]),
    ],
)
def test_devices_that_a_build_is_for(monkeypatch, architectures, runs, does_not_run):
    monkeypatch.setattr(backends, "_cuda_architectures", lambda: architectures)
    assert all(backends._compiled_for(capability) for capability in runs)
    assert not any(backends._compiled_for(capability) for capability in does_not_run)


def test_a_triton_that_is_too_old_is_a_reason(monkeypatch):
    backends._load_triton.cache_clear()
    try:
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.5.1+git")
        assert any(reason.startswith("triton is 3.5.1+git; the oldest") for reason in backends._load_triton())
        for version in ("3.6.0", "3.10.0"):
            backends._load_triton.cache_clear()
            monkeypatch.setattr(importlib.metadata, "version", lambda name, version=version: version)
            assert not any("the oldest" in reason for reason in backends._load_triton())
    finally:
        backends._load_triton.cache_clear()
