"""AMD's zentorch as a contender: torch.compile with its backend, forward only."""

from collections.abc import Callable, Sequence

import torch
import zentorch

from . import engine_torch
from .rows import Classifier, PeerRow


def setup(arguments: Sequence[str], threads: int) -> None:
    engine_torch.use_compiler("zentorch")


def versions() -> dict[str, str]:
    return {"zentorch": zentorch.__version__, "torch": torch.__version__}


def contenders(row: PeerRow) -> dict[str, Callable]:
    """torch's contenders, compiled by zentorch."""
    return {} if row.backward or isinstance(row.work, Classifier) else engine_torch.contenders(row)
