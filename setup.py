"""Builds bigmodel_kernels._C with CMake: everything about compiling is in CMakeLists.txt, the rest of the metadata in
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


def torch_folder():
    """The installed torch package, or None. pip's isolated builds hide the environment that is being installed into,
    so its own site-packages are searched too: the build needs only torch's headers and libraries."""
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    sites = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    folders += [Path(folder) / "torch" for folder in [*sites, site.getusersitepackages()]]
    return next((folder for folder in folders if (folder / "include/torch/csrc/stable").is_dir()), None)


def require_compiler():
    """Exits with one sentence where no C++20 compiler answers."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ["c++", "g++", "clang++"]), None)
    if compiler:
        check = [*compiler.split(), "-std=c++20", "-fsyntax-only", "-x", "c++", os.devnull]
        if shutil.which(check[0]) and subprocess.run(check, capture_output=True).returncode == 0:
            return
    sys.exit(
        f"bigmodel_kernels needs a C++20 compiler and {compiler or 'c++'} is none: install g++ 12 or newer "
        "(apt-get install g++) or clang++ 15 or newer, or name one in the environment variable CXX."
    )


def tool(name):
    """The full path of cmake or ninja: beside the running Python, or on an isolated build's PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name) or name


class CMakeBuild(build_ext):
    """Runs CMake and ninja, and shows what they print."""

    def build_extension(self, extension):
        import pybind11

        require_compiler()
        torch = torch_folder()
        if torch is None:
            sys.exit("bigmodel_kernels is compiled against torch, which is not installed: pip install 'torch>=2.10'.")
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        options = {
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "BIGMODEL_TORCH_DIR": torch,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "Python_EXECUTABLE": sys.executable,
        }
        # BIGMODEL_CUDA=ON and BIGMODEL_CUDA_ARCHS="80;90": see cmake/Cuda.cmake.
        options |= {name: os.environ[name] for name in ("BIGMODEL_CUDA", "BIGMODEL_CUDA_ARCHS") if name in os.environ}
        defines = [f"-D{name}={value}" for name, value in options.items()]
        defines += os.environ.get("CMAKE_ARGS", "").split()  # for example -DBIGMODEL_CPU_TARGETS=avx2
        for step in (["-S", ROOT, "-B", build, "-G", "Ninja", *defines], ["--build", build, "--target", "_C"]):
            if subprocess.run([tool("cmake"), *step]).returncode != 0:
                sys.exit("bigmodel_kernels could not be built: the reason stands above.")
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # In one step: a process that has the old one loaded would crash where the file changed under it.
        beside = target.with_name(f"{target.name}.new")
        shutil.copy(build / "python/src" / target.name, beside)
        os.replace(beside, target)


setup(
    packages=[
        *find_packages(ROOT, include=["bigmodel_kernels", "bigmodel_kernels.*"]),
        "bigmodel_bench",
        "bigmodel_bench.peers",
    ],
    package_dir={"bigmodel_bench": "bench"},
    ext_modules=[Extension("bigmodel_kernels._C", sources=[])],  # CMake knows the sources
    cmdclass={"build_ext": CMakeBuild},
    # Only a build that cannot see any torch asks for one; it is several gigabytes.
    setup_requires=[] if torch_folder() else ["torch>=2.10"],
)
