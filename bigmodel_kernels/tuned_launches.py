"""The launches that `bigmodel tune` measured, kept on disk: one JSON file per device, versions and kernel source.

Files lie in BIGMODEL_TUNE_DIR or else in the user's cache folder. They are read at the first launch on a device, and
only where everything that a measurement depends on is as it was: a table of another version is left alone, and the
default tables are used.
"""

import functools
import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import filelock
import platformdirs
import torch

FORMAT = "bigmodel_kernels launches 1"
ENVIRONMENT = "BIGMODEL_TUNE_DIR"
_KERNELS = Path(__file__).parent / "triton"


@dataclass(frozen=True)
class Identity:
    """What a measurement depends on; a table is used where all of it is the same. source: of the kernels' files."""

    device: str
    capability: str  # "9.0"
    torch: str
    triton: str
    bigmodel_kernels: str
    source: str

    @property
    def file_name(self) -> str:
        readable = re.sub(r"[^A-Za-z0-9]+", "-", f"{self.device} sm {self.capability}").strip("-").lower()
        return f"{readable}-{_digest(json.dumps(asdict(self)).encode())[:16]}.json"


@dataclass(frozen=True)
class Measured:
    """One choice: the launch that was fastest for a key (triton/choice.py), and how fast it and the default were."""

    key: tuple
    launch: dict[str, int]  # the fields of a ProductLaunch, or of attention's Launch
    milliseconds: float
    default_milliseconds: float


def identity_of(device: torch.device) -> Identity:
    """A CUDA device with the versions that are installed here."""
    import triton

    import bigmodel_kernels

    major, minor = torch.cuda.get_device_capability(device)
    return Identity(
        device=torch.cuda.get_device_name(device),
        capability=f"{major}.{minor}",
        torch=torch.__version__,
        triton=triton.__version__,
        bigmodel_kernels=bigmodel_kernels.__version__,
        source=source_digest(),
    )


@functools.cache
def source_digest(folder: Path = _KERNELS) -> str:
    """Of the names and contents of all files of the kernels."""
    files = sorted(folder.glob("*.py"))
    return _digest(b"".join(path.name.encode() + b"\0" + path.read_bytes() + b"\0" for path in files))


def default_folder() -> Path:
    chosen = os.environ.get(ENVIRONMENT)
    return Path(chosen) if chosen else platformdirs.user_cache_path("bigmodel_kernels") / "launches"


def path_of(identity: Identity, folder: Path | None = None) -> Path:
    return (folder or default_folder()) / identity.file_name


def load(identity: Identity, folder: Path | None = None) -> dict[tuple, Measured]:
    """The table by key; empty where there is none. Raises: ValueError for a file that is damaged or another's, or that
    cannot be read."""
    path = path_of(identity, folder)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(f"[tune] {path} cannot be read: {type(error).__name__}: {error.strerror}") from error
    try:
        content = json.loads(text.decode())
        if content["format"] != FORMAT or content["identity"] != asdict(identity):
            raise ValueError("it is not a table of this version, device and kernels")
        entries = [_entry(each) for each in content["launches"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"[tune] {path} is no table of launches ({type(error).__name__}: {error}); expected what `bigmodel tune` "
            "writes: delete the file, and measure again"
        ) from error
    return {each.key: each for each in entries}


def save(identity: Identity, entries: list[Measured], folder: Path | None = None) -> Path:
    """Adds entries to the table on disk, in place of those with the same key. The file is written whole or not at all,
    and by one process at a time. Raises: ValueError for a damaged file, or one that cannot be written."""
    path = path_of(identity, folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock")):
            table = load(identity, folder) | {each.key: each for each in entries}
            launches = [asdict(each) for _, each in sorted(table.items(), key=lambda item: str(item[0]))]
            content = {"format": FORMAT, "identity": asdict(identity), "launches": launches}
            _write(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"[tune] {path} cannot be written: {type(error).__name__}: {error}") from error
    return path


def launches_on(device: torch.device) -> Mapping[tuple, Any]:
    """What the launchers look up: launches by key. A damaged file is said so, once, and not used."""
    if device.type != "cuda":
        return {}
    try:
        table = load(identity_of(device))
    except ValueError as error:
        warnings.warn(f"{error}. Until then the default launches are used.", RuntimeWarning, stacklevel=2)
        return {}
    return {key: launch_of(each) for key, each in table.items()}


def describe(device: torch.device) -> str:
    """Which launches are used on a CUDA device, and why, in a sentence."""
    identity = identity_of(device)
    path = path_of(identity)
    try:
        table = load(identity)
    except ValueError as error:
        return f"default launches: {error}"
    if table:
        return f"{len(table)} launches measured on this device, the others default ({path})"
    stem = path.name.rpartition("-")[0]
    others = [each for each in path.parent.glob(f"{stem}-*.json") if each != path]
    if others:
        return "default launches: what was measured here was of other versions or kernels; run `bigmodel tune` again"
    return "default launches; `bigmodel tune` would measure on this device"


def launch_of(entry: Measured) -> Any:
    """The launchers' own object. Raises: ValueError for what is no launch."""
    from .triton import attention_launch, launch

    kind = attention_launch.Launch if entry.key[0] in attention_launch.PASSES else launch.ProductLaunch
    names = [field.name for field in fields(kind)]
    if sorted(entry.launch) != sorted(names):
        raise ValueError(f"a launch of {entry.key[0]} has {sorted(entry.launch)}, expected {names}")
    for name, value in entry.launch.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1024:
            raise ValueError(f"{name} of {entry.key} is {value!r}, expected a number from 1 to 1024")
    for name in ("block_m", "block_n", "block_k", "num_warps"):
        if entry.launch.get(name, 1).bit_count() != 1:
            raise ValueError(f"{name} of {entry.key} is {entry.launch[name]}, expected a power of two")
    return kind(**entry.launch)


def _entry(content: dict) -> Measured:
    milliseconds = float(content["milliseconds"]), float(content["default_milliseconds"])
    entry = Measured(tuple(content["key"]), dict(content["launch"]), *milliseconds)
    launch_of(entry)
    return entry


def _write(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.stem, suffix=".part", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
