"""Builds the emulator, the project's CUDA kernels against it, and CUDA sources of a test's own, under build/."""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "ptx_emulator"

CUDA_CALL = re.compile(r"_*cu(da)?[A-Z]")  # a function of the runtime, of nvcc's share in it, or of the driver
NO_NVCC = (
    "nvcc was found neither in NVCC, on the PATH, in /usr/local/cuda nor in PyPI's packages: "
    "pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl"
)


def nvcc() -> Path | None:
    """nvcc: the one that NVCC names, on the PATH, in /usr/local/cuda, or of the PyPI package; None if there is none."""
    packages = [Path(folder) / "nvidia" for folder in sys.path]
    candidates = [os.environ.get("NVCC"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    candidates += [path for folder in packages for path in sorted(folder.glob("cu*/bin/nvcc"))]
    return next((Path(each) for each in candidates if each and Path(each).exists()), None)


def _run(command: list) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"[ptx_emulator] {' '.join(map(str, command))} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def _tool(name: str) -> str:
    """cmake or ninja: beside the running Python, or on the PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name) or name


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time in a folder under BUILD: pytest's workers all want the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def built(target: str) -> Path:
    """A target of CMakeLists.txt as a shared library, up to date."""
    torch = importlib.util.find_spec("torch")
    options = {
        "CMAKE_MAKE_PROGRAM": _tool("ninja"),
        "BIGMODEL_TORCH_DIR": Path(torch.origin).parent if torch and torch.origin else "",
        "PTX_EMULATOR_NVCC": nvcc() or "",
        "Python_EXECUTABLE": sys.executable,
    }
    folder = BUILD / "cmake"
    with _locked(folder):
        if not (folder / "build.ninja").exists():
            _run([_tool("cmake"), "-S", HERE, "-B", folder, "-G", "Ninja", *[f"-D{k}={v}" for k, v in options.items()]])
        _run([_tool("cmake"), "--build", folder, "--target", target])
    return folder / f"lib{target}.so"


def _symbols(library: Path, which: str) -> set[str]:
    return set(_run(["nm", "-D", "--format=just-symbols", which, library]).split())


def emulated_calls() -> set[str]:
    """The functions of CUDA that the emulator stands in for."""
    return {name for name in _symbols(built("ptx_emulator"), "--defined-only") if CUDA_CALL.match(name)}


def checked(library: Path) -> Path:
    """A library of host code. Raises: RuntimeError that names its calls of CUDA for which the emulator has nothing: the
    loader may find those elsewhere, in the CUDA that torch came with."""
    called = {name for name in _symbols(library, "--undefined-only") if CUDA_CALL.match(name)}
    unknown = sorted(called - emulated_calls())
    if unknown:
        raise RuntimeError(f"[ptx_emulator] {library.name} calls {', '.join(unknown)}, which nothing emulates")
    return library


def cuda_library(*sources: Path, include: tuple[Path, ...] = (), defines: tuple[str, ...] = (), arch: int = 80) -> Path:
    """CUDA sources with their host code as a shared library that holds PTX for compute capability `arch` and calls the
    emulator for the CUDA runtime. Compiled once per state of the sources and of the headers beside and in `include`.
    Raises: RuntimeError where they do not compile, or call what is not emulated."""
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError(f"[ptx_emulator] {NO_NVCC}")
    sources = tuple(map(Path, sources))
    flags = ["-std=c++20", "-O3", "-lineinfo", f"-gencode=arch=compute_{arch},code=compute_{arch}", "--no-compress"]
    flags += [
        "--cudart=none",
        "-Xcompiler=-fPIC",
        *[f"-I{each}" for each in include],
        *[f"-D{each}" for each in defines],
    ]
    folders = {source.parent for source in sources} | set(include)
    headers = sorted(path for each in folders for path in each.rglob("*") if path.suffix in {".h", ".cuh"})
    digest = hashlib.sha256(" ".join([str(compiler), *flags]).encode())
    for path in (*sources, *headers):
        digest.update(path.read_bytes())
    library = BUILD / "cuda" / f"lib{sources[0].stem}-{digest.hexdigest()[:16]}.so"
    with _locked(library.with_suffix("")):
        if not library.exists():
            unfinished = library.with_suffix(f".{os.getpid()}.so")
            _run([compiler, *flags, "-shared", *sources, "-o", unfinished])
            unfinished.replace(library)
    return checked(library)
