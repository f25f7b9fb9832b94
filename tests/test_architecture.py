"""The house's rules, held mechanically: who may import whom, what kernels may include, where intrinsics live, and that
every op has all its parts."""

import ast
import re
from pathlib import Path

import pytest
import torch

import bigmodel_kernels  # noqa: F401 (registers the ops)
from bigmodel_kernels import reference

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bigmodel_kernels"

# What each part of the package may import of the others: one-way, so no part appears above what it imports.
MAY_IMPORT = {
    "reference": set(),
    "triton": set(),
    "checks": set(),
    "machine": set(),
    "interpreter": set(),
    "tuned_launches": {"triton"},
    "ops": {"_C", "checks", "reference"},
    "gpu_choice": set(),
    "linear_choice": {"_C", "machine"},
    "backends": {"_C", "gpu_choice", "interpreter", "ops", "reference", "triton", "tuned_launches"},
    "functional": {"backends", "checks", "ops", "reference"},
    "warming": {"backends", "functional"},
    "nn": {"functional", "linear_choice"},
    "models": {"functional", "nn"},
    "integrations": {"functional", "linear_choice", "models", "nn"},
    "testing": {"_C", "backends", "functional", "models", "nn", "reference"},
    "audit": {"interpreter", "triton"},
    "tuning": {"interpreter", "testing", "triton", "tuned_launches"},
    "training": {"_C", "functional", "integrations", "machine", "models", "nn"},
    "cli": {
        "_C",
        "audit",
        "backends",
        "functional",
        "integrations",
        "machine",
        "models",
        "nn",
        "training",
        "tuned_launches",
        "tuning",
    },
}
# The only imports from outside that these parts may have: they are read and run where nothing else is installed.
ONLY_FROM = {
    "reference": {"torch", "math"},
    "triton": {
        "torch",
        "triton",
        "math",
        "collections",
        "contextlib",
        "dataclasses",
        "functools",
        "importlib",
        "typing",
    },
}

SCHEMAS = re.findall(r'library\.def\(\s*"(\w+)\(', (ROOT / "python/src/library.cpp").read_text())
# A name that ends in _ is the op's form in place.
OPS = [name for name in SCHEMAS if not name.endswith(("_backward", "_pack", "_"))]


def part_of(path: Path) -> str:
    """The part of the package that a file belongs to: its folder's name, or its own."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, at its top or inside its functions; `from a import b` counts
    as a.b."""
    found = set()
    package = ["bigmodel_kernels", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


PYTHON_FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is a new part of the package: give it a row in MAY_IMPORT"
    ours = [name.split(".")[1] for name in imports_of(path) if name.startswith("bigmodel_kernels.")]
    wrong = set(ours) - MAY_IMPORT[part] - {part}
    assert not wrong, f"{part} must not import {sorted(wrong)}"


@pytest.mark.parametrize("part", [part for part in ONLY_FROM if (PACKAGE / part).exists()])
def test_imports_little_from_outside(part):
    for path in (PACKAGE / part).rglob("*.py"):
        outside = {name.split(".")[0] for name in imports_of(path)} - {"bigmodel_kernels"}
        assert outside <= ONLY_FROM[part], f"{path.name} imports {sorted(outside - ONLY_FROM[part])}"


def test_only_its_integration_knows_transformers():
    """At the top of a file that only register() imports, or inside functions."""
    for path in PYTHON_FILES:
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {getattr(node, "module", None) or node.names[0].name for node in top if not getattr(node, "level", 0)}
        at_top = any(name.split(".")[0] == "transformers" for name in names)
        anywhere = any(name.split(".")[0] == "transformers" for name in imports_of(path))
        assert not at_top or path == PACKAGE / "integrations/transformers_masks.py", f"{path.name} imports transformers"
        assert not anywhere or part_of(path) == "integrations", f"{path.name} imports transformers"


def test_the_rules_have_no_cycle():
    order = list(MAY_IMPORT)
    for part, allowed in MAY_IMPORT.items():
        later = [name for name in allowed if name in order and order.index(name) >= order.index(part)]
        assert not later, f"{part} may import {later}, which stand above it"


def cxx_files(folder: str) -> list[Path]:
    return [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]


def includes_of(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


# Compiled once per CPU target: nothing of the standard library whose functions would be emitted as weak symbols.
ONCE_PER_TARGET = [
    path for path in cxx_files("csrc/cpu") if path.name not in {"select.cpp", "features.cpp", "features.h", "cpu.h"}
]
STANDARD_HEADERS = {"cstdint", "cstddef", "cstring"}
INTRINSIC_HEADERS = {"immintrin.h", "arm_neon.h"}


@pytest.mark.parametrize("path", ONCE_PER_TARGET, ids=lambda path: path.name)
def test_kernels_include_only_what_is_safe_per_target(path):
    allowed = STANDARD_HEADERS | (INTRINSIC_HEADERS if path.parent.name == "isa" else set())
    for name in includes_of(path):
        assert name.startswith(("bigmodel/", "cpu/")) or name in allowed, f"{path.name} includes {name}"


def test_contracts_include_only_themselves_and_cstdint():
    for path in cxx_files("csrc/include"):
        wrong = [name for name in includes_of(path) if not name.startswith("bigmodel/") and name != "cstdint"]
        assert not wrong, f"{path.name} includes {wrong}"


@pytest.mark.parametrize("device, other", [("cpu", "cuda"), ("cuda", "cpu")])
def test_devices_do_not_include_each_other_or_torch(device, other):
    for path in cxx_files(f"csrc/{device}"):
        wrong = [name for name in includes_of(path) if name.startswith((f"{other}/", "torch/", "pybind11/", "Python"))]
        assert not wrong, f"{path.name} includes {wrong}"


def test_kernels_are_launched_in_one_place_and_assembly_is_in_one_file():
    """`<<<` and cudaLaunchKernel only in launch.cuh, inline assembly only in ptx.cuh."""
    for words, home in (("<<<|cudaLaunchKernel", "launch.cuh"), (r"\basm\b", "ptx.cuh")):
        found = {path.name for path in cxx_files("csrc/cuda") if re.search(words, path.read_text())}
        assert found == {home}, f"{words} is found in {sorted(found)}"


def test_the_binding_includes_torch_only_through_its_stable_interface():
    for path in cxx_files("python/src"):
        torch_headers = [name for name in includes_of(path) if name.startswith(("torch/", "ATen/", "c10/"))]
        wrong = [name for name in torch_headers if not name.startswith(("torch/csrc/stable/", "torch/headeronly/"))]
        assert not wrong, f"{path.name} includes {wrong}"


INTRINSIC = re.compile(
    r"\b_mm(?:256|512)?_\w+|\b__m(?:128|256|512)[dih]*\b|\b_tile_\w+|\b__tile\w*|\bv[a-z]+q?_[fsu](?:8|16|32|64)\b"
)


def test_intrinsics_live_in_isa_only():
    assert any(INTRINSIC.search(path.read_text()) for path in cxx_files("csrc/cpu/isa")), "the pattern finds none"
    for path in cxx_files("csrc") + cxx_files("python/src"):
        if "isa" not in path.parts:
            assert not INTRINSIC.search(path.read_text()), f"{path.name} uses an intrinsic"


def test_the_schemas_are_found():
    assert len(OPS) >= 5 and "attention" in OPS


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_has_a_cpu_kernel_and_a_fake(name):
    qualified = f"bigmodel::{name}"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "CPU"), f"{name} is not registered for the CPU"
    fake = torch._library.simple_registry.singleton.find(qualified).fake_impl.kernel
    has_meta = torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "Meta")
    assert fake is not None or has_meta, f"{name} has no fake"


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_the_same_in_triton(name):
    pytest.importorskip("triton")
    from bigmodel_kernels import triton

    ours, theirs = (getattr(getattr(torch.ops, each), name).default._schema for each in (triton.NAMESPACE, "bigmodel"))
    assert str(ours).split("::")[1] == str(theirs).split("::")[1]


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_has_a_kernel_table_entry(name):
    table = (ROOT / "csrc/cpu/kernel_table.h").read_text()
    assert re.search(rf"\b{name.rstrip('_')}(_forward)?;", table), f"kernel_table.h has no entry for {name}"


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_reference_a_test_and_a_benchmark(op):
    assert callable(getattr(reference, op, None)), f"bigmodel_kernels.reference has no {op}"
    for path in (f"bigmodel_kernels/ops/{op}.py", f"tests/test_{op}.py", f"bench/bench_{op}.py"):
        assert (ROOT / path).exists(), f"{path} is missing"
