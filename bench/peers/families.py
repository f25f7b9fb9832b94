"""The families of contenders: which process runs each, and under which settings."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# glibc gives every large output back to the system and takes new pages for the next: the page faults would be the time.
# Every contender runs with both thresholds raised, as a long-lived server would.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}
# Asked by MKL whether the processor is Intel's, before it chooses instructions.
MKL_SOURCE = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


@dataclass(frozen=True)
class Family:
    """One process. venv: the folder below `peers_folder()` whose Python runs it, None for this process's own; engine:
    a module, relative to this package or absolute; arguments: the engine's; dtypes: those that it is asked for;
    preloads_mkl: whether MKL is told that it may use what an Intel processor would get."""

    name: str
    engine: str
    arguments: tuple[str, ...] = ()
    venv: str | None = None
    dtypes: tuple[str, ...] = ("fp32", "bf16", "fp16")
    preloads_mkl: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        return peers_folder() / self.venv / "bin/python" if self.venv else Path(sys.executable)

    @property
    def absence(self) -> str | None:
        """Why it cannot start, or None."""
        return None if self.python.exists() else "not installed: make peers"


OURS = Family("ours", ".engine_ours")
TORCH = (
    Family("torch", ".engine_torch"),
    Family("torch+mkl512", ".engine_torch", preloads_mkl=True),
    Family("torch medium", ".engine_torch", ("medium",), dtypes=("fp32",)),
    Family("torch.compile", ".engine_torch", ("compile",)),
    Family("torch.compile+mkl512", ".engine_torch", ("compile",), preloads_mkl=True),
)
OTHERS = (
    Family("onnxruntime", ".engine_onnx", venv="engines", dtypes=("fp32", "fp16")),
    Family("openvino", ".engine_openvino", venv="engines"),
    Family("zentorch", ".engine_zentorch", venv="zentorch"),
    Family("ipex", ".engine_ipex", venv="ipex"),
)


def family_of(contender: str) -> str:
    """The name of a contender's family, with which its own begins: alone, or before a space and the way it takes."""
    names = (family.name for family in (OURS, *TORCH, *OTHERS))
    return max((name for name in names if f"{contender} ".startswith(f"{name} ")), key=len, default="")


def peers_folder() -> Path:
    """Where `make peers` put the virtual environments: BIGMODEL_PEERS, or `peers` in this one."""
    return Path(os.environ.get("BIGMODEL_PEERS") or Path(sys.prefix) / "peers")


def select(names: str) -> list[Family]:
    """ "all", "torch" (torch's families only), or names with commas between; ours always comes first.

    Raises ValueError for a name that is none of these.
    """
    known = {family.name: family for family in (*TORCH, *OTHERS)}
    if names == "all":
        return [OURS, *known.values()]
    if names == "torch":
        return [OURS, *TORCH]
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in known:
            raise ValueError(f"[bench] peer {name!r} is unknown: expected all, torch, or some of {', '.join(known)}")
    return [OURS, *(known[name] for name in chosen)]


def command(family: Family, threads: int) -> list[str]:
    """What starts the family's worker."""
    package = __package__ or ""
    engine = package + family.engine if family.engine.startswith(".") else family.engine
    return [str(family.python), "-m", f"{package}.worker", engine, str(threads), *family.arguments]


def environment(family: Family, threads: int, scratch: Path) -> dict[str, str]:
    """The worker's environment: this one, the allocator's setting, the threads, and where to find this package.

    scratch: a folder of the run; MKL's library is built there, and a link named bigmodel_bench stands there, so that
    another virtual environment imports this very package without installing it.
    """
    link = scratch / "path" / __package__.split(".")[0]
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(__file__).resolve().parent.parent)
    paths = [str(link.parent), *([os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [])]
    values = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)}
    if family.venv:  # another Python's packages: only this package comes from here
        values["PYTHONPATH"] = str(link.parent)
    if family.preloads_mkl:
        values["LD_PRELOAD"] = str(mkl_library(scratch))
    return values | family.environment


def mkl_library(scratch: Path) -> Path:
    """Builds the two-line library with the system's C compiler, once per run.

    Raises RuntimeError where there is none or it fails.
    """
    library = scratch / "libmkl_may_use_avx512.so"
    if not library.exists():
        compiler = next(filter(shutil.which, ("cc", "gcc", "clang")), None)
        if compiler is None:
            raise RuntimeError("no C compiler (cc, gcc or clang) to build MKL's preloaded library with")
        _compile(compiler, library)
    return library


def _compile(compiler: str, library: Path) -> None:
    source = library.with_suffix(".c")
    source.write_text(MKL_SOURCE)
    arguments: Sequence[str] = (compiler, "-shared", "-fPIC", "-o", str(library), str(source))
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{compiler} could not build MKL's preloaded library: {done.stderr.strip()[:200]}")
