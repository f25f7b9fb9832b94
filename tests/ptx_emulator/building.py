"""Compiles the emulator, and CUDA sources against it, into build/ptx_emulator: once per state of their sources."""

import concurrent.futures
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "ptx_emulator"
FLAGS = ["-std=c++20", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]


def processor_flags() -> list[str]:
    """Vectors and fused multiply-add where the processor has them: they make it faster, and change no result."""
    if platform.machine() != "x86_64":
        return []
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return ["-march=x86-64-v3"] if {"avx2", "fma", "bmi2", "movbe"} <= words else []


def fingerprint(*parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else str(part).encode())
    return digest.hexdigest()[:16]


def run(command: list) -> None:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"[ptx_emulator] {' '.join(map(str, command))} failed:\n{result.stdout}{result.stderr}")


def emulator_library() -> Path:
    """The emulator as a shared library, compiled if its sources changed."""
    compiler = os.environ.get("CXX", "g++")
    headers = sorted((HERE / "core").glob("*.h"))
    flags = FLAGS + processor_flags()
    state = fingerprint(compiler, flags, *headers)
    objects = []
    for source in sorted((HERE / "core").glob("*.cpp")):
        objects.append((source, BUILD / "objects" / f"{source.stem}-{fingerprint(state, source)}.o"))
    library = BUILD / f"libptx_emulator-{fingerprint(*[each.name for _, each in objects])}.so"
    if library.exists():
        return library
    (BUILD / "objects").mkdir(parents=True, exist_ok=True)

    def compile_one(pair: tuple[Path, Path]) -> None:
        source, target = pair
        if not target.exists():
            extra = ["-frounding-math"] if source.stem == "rounding" else []
            temporary = target.with_suffix(f".{os.getpid()}.o")
            run([compiler, *flags, *extra, "-c", source, "-o", temporary])
            temporary.replace(target)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, objects))
    temporary = library.with_suffix(f".{os.getpid()}.so")
    run([compiler, "-shared", "-pthread", *[each for _, each in objects], "-o", temporary])
    temporary.replace(library)
    return library


def nvcc() -> str | None:
    """Path of nvcc: NVCC, the one on PATH, or the one that its package from PyPI brought; None if there is none."""
    found = os.environ.get("NVCC") or shutil.which("nvcc")
    if found:
        return found
    try:
        import nvidia.cu13 as package
    except ImportError:
        return None
    path = Path(list(package.__path__)[0]) / "bin" / "nvcc"
    return str(path) if path.exists() else None


def cuda_library(*sources: Path, include: tuple[Path, ...] = (), defines: tuple[str, ...] = (), arch: int = 80) -> Path:
    """CUDA sources with their host code as a shared library that holds PTX for compute capability `arch` and calls the
    emulator for the CUDA runtime."""
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("[ptx_emulator] nvcc is missing: put it on PATH or install nvidia-cuda-nvcc from PyPI")
    flags = ["-std=c++20", "-O3", "-lineinfo", f"-gencode=arch=compute_{arch},code=compute_{arch}", "--no-compress"]
    flags += ["--cudart=none", "-Xcompiler=-fPIC", *[f"-I{folder}" for folder in include]]
    flags += [f"-D{define}" for define in defines]
    folders = {Path(source).parent for source in sources} | set(include)
    headers = sorted(path for each in folders for path in each.rglob("*") if path.suffix in {".h", ".cuh"})
    state = fingerprint(compiler, flags, *map(Path, sources), *headers)
    folder = BUILD / "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"lib{Path(sources[0]).stem}-{state}.so"
    if not library.exists():
        temporary = library.with_suffix(f".{os.getpid()}.so")
        run([compiler, *flags, "-shared", *sources, "-o", temporary])
        temporary.replace(library)
    return library
