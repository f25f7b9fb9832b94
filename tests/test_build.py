"""What the build promises: a binary that needs only torch's stable interface, kernels that cannot leak from one CPU
target into another, clear errors, and metadata without torch."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import bigmodel_kernels
from bigmodel_kernels import _C
from bigmodel_kernels.audit.nvcc import NO_NVCC, nvcc

ROOT = Path(__file__).resolve().parent.parent

needs_binutils = pytest.mark.skipif(
    platform.system() != "Linux" or not (shutil.which("nm") and shutil.which("readelf")),
    reason="nm and readelf (binutils, Linux) are not here to read the binary with",
)


def run_python(code: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Runs `code` in a fresh interpreter that looks for modules in `folder` first."""
    path = {"PYTHONPATH": str(folder)} if folder else {}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**os.environ, **path, **environment},
    )


def symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """(type letter, demangled name) of a binary's symbols, as nm gives them."""
    output = subprocess.run(["nm", "-C", *options, path], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^[0-9a-f ]{16,} ([A-Za-z]) (.+)$", output, re.MULTILINE)


@needs_binutils
def test_extension_needs_only_the_stable_interface():
    needed = [name for _, name in symbols(Path(_C.__file__), "-D", "--undefined-only")]
    assert any(name.startswith("aoti_torch_") for name in needed), "nm shows nothing of torch: is this the extension?"
    unstable = [name for name in needed if re.search(r"\b(at|c10|torch|caffe2)::", name)]
    assert not unstable


@needs_binutils
def test_extension_exports_nothing_of_ours_but_its_module():
    exported = [name for _, name in symbols(Path(_C.__file__), "-D", "--defined-only")]
    assert "PyInit__C" in exported
    assert not [name for name in exported if "bigmodel" in name or "pybind11" in name]


def built_here(tree: Path) -> bool:
    """Whether the loaded extension is the one that this build tree made."""
    folder = re.search(
        r"^CMAKE_LIBRARY_OUTPUT_DIRECTORY:\w+=(.+)$", (tree / "CMakeCache.txt").read_text(), re.MULTILINE
    )
    loaded = Path(_C.__file__)
    made = (Path(folder[1]) if folder else tree / "python/src") / loaded.name
    return made.exists() and made.read_bytes() == loaded.read_bytes()


def target_objects() -> list[tuple[str, Path]]:
    """(CPU target, object file) for every kernel file in the build tree that made the loaded extension. That tree may
    hold tests of tests/cpp for a target too, which are no part of the extension."""
    trees = [path.parent for path in (ROOT / "build").glob("*/CMakeCache.txt") if built_here(path.parent)]
    if not trees:
        pytest.skip("the loaded extension was not built in this folder, so its object files are not here to be read")
    commands = json.loads((trees[0] / "compile_commands.json").read_text())
    found = [
        (re.search(r"-DBIGMODEL_TARGET=(\w+)", entry["command"]), trees[0] / entry["output"]) for entry in commands
    ]
    kernels = trees[0] / "csrc"
    return [(match[1], path) for match, path in found if match and path.is_relative_to(kernels)]


@needs_binutils
def test_objects_of_a_target_hold_only_its_own_symbols():
    objects = target_objects()
    assert {target for target, _ in objects} == set(_C.compiled_cpu_targets())
    host = {"bigmodel::max_workers()", "bigmodel::run_workers(int, void (*)(void*, int), void*)"}
    for target, path in objects:
        own = f"bigmodel::cpu::{target}::"
        for kind, name in symbols(path):
            where = f"{target}/{path.name}: {kind} {name}"
            assert kind not in "WwVvuC", f"weak or common, so the linker may take another target's: {where}"
            assert not name.startswith("_GLOBAL__"), f"runs before main: {where}"
            if kind == "U" and "::" in name:
                assert name.startswith(own) or name in host, f"foreign: {where}"
            if kind.isupper() and kind != "U":
                assert own in name, f"outside the target's namespace: {where}"


@needs_binutils
def test_objects_of_a_target_have_no_static_initialisers():
    for target, path in target_objects():
        sections = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True).stdout
        assert ".text" in sections
        assert not re.search(r"\.(init_array|ctors|preinit_array)", sections), f"{target}/{path.name}"


def test_nonsense_cpu_target_in_the_environment_is_an_error():
    code = "import torch, bigmodel_kernels; torch.ops.bigmodel.linear_pack(torch.ones(2, 2))"
    result = run_python(code, BIGMODEL_CPU_TARGET="nonsense")
    assert result.returncode != 0
    last_line = result.stderr.strip().splitlines()[-1]
    assert "[cpu_target] 'nonsense' is not a CPU target of this build; it has: " in last_line
    assert "baseline" in last_line


def test_cpu_target_in_the_environment_is_obeyed():
    result = run_python("import bigmodel_kernels; print(bigmodel_kernels.cpu_target())", BIGMODEL_CPU_TARGET="baseline")
    assert result.stdout.strip() == "baseline", result.stderr


def test_nonsense_cpu_target_is_refused():
    before = bigmodel_kernels.cpu_target()
    with pytest.raises(ValueError, match=r"^\[cpu_target\] 'nonsense' is not a CPU target of this build"):
        bigmodel_kernels.set_cpu_target("nonsense")
    assert bigmodel_kernels.cpu_target() == before


def test_cpu_target_that_this_machine_lacks_is_refused():
    lacking = set(_C.compiled_cpu_targets()) - set(_C.supported_cpu_targets())
    if not lacking:
        pytest.skip("this machine runs every compiled CPU target")
    with pytest.raises(ValueError, match=r"^\[cpu_target\] .* needs instructions that this processor lacks; it runs: "):
        bigmodel_kernels.set_cpu_target(lacking.pop())


def test_every_supported_cpu_target_can_be_chosen():
    before = bigmodel_kernels.cpu_target()
    try:
        for name in bigmodel_kernels.supported_cpu_targets():
            bigmodel_kernels.set_cpu_target(name)
            assert bigmodel_kernels.cpu_target() == name
    finally:
        bigmodel_kernels.set_cpu_target(before)


@pytest.fixture
def copied_package(tmp_path):
    """The package's Python files without its extension."""
    source = Path(bigmodel_kernels.__file__).parent
    shutil.copytree(source, tmp_path / "bigmodel_kernels", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    return tmp_path


@pytest.mark.parametrize("content", [None, b"not a library"], ids=["missing", "broken"])
def test_extension_that_cannot_load_is_explained(copied_package, content):
    if content is not None:
        (copied_package / "bigmodel_kernels" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(content)
    # An editable installation's finder would look for the missing extension in the project's own folder.
    program = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in f.__module__]"
    result = run_python(f"{program}; import bigmodel_kernels", copied_package)
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: bigmodel_kernels cannot load its compiled extension")
    for part in (torch.__version__, platform.python_version(), "pip install", "torch 2.10 or newer"):
        assert part in message
    reason = "file too short|invalid ELF" if content else "cannot import name '_C'"
    assert re.search(reason, message) or platform.system() != "Linux"


@pytest.mark.parametrize("command", [["--version"], ["-q", "egg_info", "--egg-base", "."]], ids=["version", "egg_info"])
def test_metadata_does_not_import_torch(tmp_path, command):
    pytest.importorskip("setuptools", "77", reason="setuptools 77 or newer, which builds the project, is not installed")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')\n")
    command = [arg.replace(".", str(tmp_path)) if arg == "." else arg for arg in command]
    result = subprocess.run(
        [sys.executable, ROOT / "setup.py", *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    if command == ["--version"]:
        assert result.stdout.strip().endswith(bigmodel_kernels.__version__)
    else:
        assert "Name: bigmodel_kernels" in (tmp_path / "bigmodel_kernels.egg-info/PKG-INFO").read_text()


def configured(folder: Path, *options: str) -> tuple[str, set[str]]:
    """What cmake says of the CUDA kernels, and the code that nvcc is asked for."""
    tools = Path(sys.executable).parent
    cmake, ninja = (shutil.which(name, path=str(tools)) or shutil.which(name) for name in ("cmake", "ninja"))
    options += (f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DBIGMODEL_TORCH_DIR={Path(torch.__file__).parent}")
    command = [cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", "-DBIGMODEL_EXTENSION=OFF", *options]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    code = re.findall(r"--generate-code=arch=compute_\d+,code=\[([^]]*)\]", (folder / "build.ninja").read_text())
    return next(iter(re.findall(r"CUDA kernels: (.*)", output)), ""), {
        each for group in code for each in group.split(",")
    }


@pytest.mark.skipif(nvcc() is None, reason=NO_NVCC)
def test_cuda_kernels_are_built_where_they_are_asked_for(tmp_path):
    """Without a GPU, and beside a torch without CUDA."""
    assert configured(tmp_path / "off", "-DBIGMODEL_CUDA=OFF") == ("", set())
    named = configured(tmp_path / "named", "-DBIGMODEL_CUDA=ON", "-DBIGMODEL_CUDA_ARCHS=75;86")
    assert named[0].startswith("on, ") and named[1] == {"sm_75", "sm_86"}
    if not shutil.which("nvidia-smi"):  # else the default is what GPUs are present
        _, code = configured(tmp_path / "default", "-DBIGMODEL_CUDA=ON")
        assert code == {"sm_80", "sm_90", "compute_90", "sm_120", "compute_120"}
    if torch.version.cuda is None:
        assert configured(tmp_path / "auto") == (
            "off, since the installed torch has no CUDA (BIGMODEL_CUDA=ON builds them all the same)",
            set(),
        )
