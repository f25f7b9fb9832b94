"""A run that can be kept: rows, and all that one must know to read them later or beside another machine's."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

import bigmodel_kernels
from bigmodel_kernels import _C
from bigmodel_kernels.machine import Cache, Machine, this_machine

from .machine import Ceiling
from .run import Row

FORMAT = "bigmodel_bench 1"


@dataclass
class Record:
    """One run of the suite.

    `ceilings` end with the run's own thread count, and there are none of a CUDA device whose peaks are not known;
    `device` describes that device and is None for the processor; `commit` is None outside a git tree; `peers`, of a run
    against peers: family -> what it ran, or why it took no part.
    """

    created: str
    quick: bool
    machine: Machine
    cpu_target: str
    threads: int
    ceilings: list[Ceiling]
    versions: dict[str, str]
    commit: str | None
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    device: str | None = None
    peers: dict[str, str] = field(default_factory=dict)

    @property
    def ceiling(self) -> Ceiling | None:
        """Of the thread count, or the device, that the rows were measured with."""
        return self.ceilings[-1] if self.ceilings else None

    def ceiling_of(self, row: Row) -> Ceiling:
        """Of the thread count that this row was measured with."""
        return next((each for each in self.ceilings if each.threads == row.threads), self.ceiling)

    def save(self, path: Path) -> None:
        """Writes JSON, all of it or nothing."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".part")
        fields = asdict(self) | {"format": FORMAT, "rows": [row.to_json() for row in self.rows]}
        unfinished.write_text(json.dumps(fields, indent=1, allow_nan=False) + "\n")
        os.replace(unfinished, path)


def load_record(path: Path) -> Record:
    """Reads what `Record.save` wrote. Raises ValueError if it is something else."""
    try:
        fields = json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"[compare] cannot read {path}: {error}") from error
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ValueError(f"[compare] {path} is not a record of this version's `bigmodel bench --json`")
    machine = fields["machine"] | {"caches": tuple(Cache(**cache) for cache in fields["machine"]["caches"])}
    return Record(
        **{
            **fields,
            "machine": Machine(**machine),
            "ceilings": [Ceiling(**ceiling) for ceiling in fields["ceilings"]],
            "rows": [Row.from_json(row) for row in fields["rows"]],
        }
    )


def new_record(ceilings: Sequence[Ceiling], quick: bool, device: str | None = None) -> Record:
    """A record of this machine, process and moment, without rows yet. device: what describes a CUDA device."""
    return Record(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=quick,
        machine=this_machine(),
        cpu_target=_C.cpu_target(),
        threads=torch.get_num_threads(),
        ceilings=list(ceilings),
        versions={
            "bigmodel_kernels": bigmodel_kernels.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        commit=_commit(),
        device=device,
    )


def _commit() -> str | None:
    """The commit of the source tree that the package is imported from, with "+changes" if files differ from it."""
    folder = Path(bigmodel_kernels.__file__).parent
    # An installed package may lie inside somebody else's repository: only a tree that tracks this file counts.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    return commit and commit + ("+changes" if _git(folder, "status", "--porcelain", "-uno") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None where there is no git, no repository or an error."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
