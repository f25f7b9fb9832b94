"""Builds bigmodel_kernels._C with CMake. Everything about compiling is in CMakeLists.txt; everything else in
pyproject.toml. torch is looked up on disk and never imported, so that metadata can be had without it."""

import importlib.util
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
COMPILER_SENTENCE = (
    "bigmodel_kernels needs a C++20 compiler (g++ 11 or newer, or clang++ 14 or newer) and found none: "
    "install one, for example with `apt-get install g++`, or name it in the environment variable CXX."
)


def torch_folder():
    """The installed torch package, or None. pip's isolated builds hide the environment that is being installed into,
    so its own site-packages are searched too: the build needs only torch's headers and libraries."""
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    sites = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    folders += [Path(folder) / "torch" for folder in [*sites, site.getusersitepackages()]]
    return next((folder for folder in folders if (folder / "include/torch/csrc/stable").is_dir()), None)


def build_jobs():
    """Compilers to run at once: one per processor, but no more than memory allows (1.5 GB each)."""
    if jobs := os.environ.get("BIGMODEL_MAX_JOBS"):
        return int(jobs)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cpus, int(memory / 1.5e9)))


def tool(name):
    """The full path of cmake or ninja, which pip puts beside the running Python or on an isolated build's PATH."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent)) or name


class CMakeExtension(Extension):
    """An extension whose sources CMake knows."""

    def __init__(self, name):
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Runs CMake and ninja, and shows what they print."""

    def build_extension(self, extension):
        import pybind11

        torch = torch_folder()
        if torch is None:
            sys.exit("bigmodel_kernels is compiled against torch, which is not installed: pip install 'torch>=2.10'.")
        if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
            sys.exit(COMPILER_SENTENCE)
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        configure = [
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DBIGMODEL_TORCH_DIR={torch}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        print(f"bigmodel_kernels: building against {torch} with {build_jobs()} jobs", flush=True)
        subprocess.run([tool("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja", *configure], check=True)
        subprocess.run([tool("cmake"), "--build", build, "--target", "_C", "-j", str(build_jobs())], check=True)


setup(
    packages=[*find_packages(ROOT, include=["bigmodel_kernels", "bigmodel_kernels.*"]), "bigmodel_bench"],
    package_dir={"bigmodel_bench": "bench"},
    ext_modules=[CMakeExtension("bigmodel_kernels._C")],
    cmdclass={"build_ext": CMakeBuild},
    # Only a build that cannot see any torch asks for one; it is several gigabytes.
    setup_requires=[] if torch_folder() else ["torch>=2.10"],
)
