"""Ahead-of-time compilation of a source of csrc/cuda by nvcc, for an architecture that need not be here.

A cubin is kept in the user's cache under a digest of the compiler, its flags and all sources that it may read.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
NO_NVCC = (
    "nvcc was found neither in NVCC, on the PATH, in /usr/local/cuda nor in PyPI's packages: "
    "pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl"
)
_FLAGS = ("-cubin", "-std=c++20", "-O3")  # as csrc/cuda/CMakeLists.txt has them


def nvcc() -> Path | None:
    """nvcc: the one that NVCC names, on the PATH, in /usr/local/cuda, or of the PyPI package; None if there is none."""
    packages = [Path(folder) / "nvidia" for folder in sys.path]
    candidates = [os.environ.get("NVCC"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    candidates += [path for folder in packages for path in sorted(folder.glob("cu*/bin/nvcc"))]
    return next((Path(each) for each in candidates if each and Path(each).exists()), None)


def reasons() -> list[str]:
    """Why the CUDA kernels cannot be compiled here; empty where they can."""
    found = [] if nvcc() else [NO_NVCC]
    if not (SOURCES / "cuda").is_dir():
        found.append(f"the kernels' sources are not beside the package: {SOURCES / 'cuda'} is missing")
    return found


def compiled(source: str, capability: int) -> Path:
    """The cubin of all kernels in csrc/cuda/<source>.cu. Raises: ValueError with the compiler's words if it fails."""
    compiler = nvcc()
    command = [str(compiler), *_FLAGS, f"-arch=sm_{capability}", f"-I{SOURCES}", f"-I{SOURCES / 'include'}"]
    path = SOURCES / "cuda" / f"{source}.cu"
    digest = hashlib.sha256(" ".join([_version(compiler), *command, source]).encode() + _state(path.read_bytes()))
    cubin = platformdirs.user_cache_path("bigmodel_kernels") / "cubins" / f"{source}-{digest.hexdigest()[:16]}.cubin"
    if not cubin.exists():
        cubin.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cubin.with_suffix(f".{os.getpid()}")
        result = subprocess.run([*command, str(path), "-o", str(unfinished)], capture_output=True, text=True)
        if result.returncode != 0:
            raise ValueError(f"[audit] nvcc failed on {path.name} for sm_{capability}:\n{result.stdout}{result.stderr}")
        unfinished.replace(cubin)
    return cubin


@functools.cache
def _version(compiler: Path) -> str:
    return subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout


def _state(source: bytes) -> bytes:
    """A digest of a source and of every header that it may include."""
    digest = hashlib.sha256(source)
    for header in sorted([*SOURCES.glob("cuda/*.cuh"), *SOURCES.glob("cuda/*.h"), *SOURCES.glob("include/**/*.h")]):
        digest.update(header.read_bytes())
    return digest.digest()
