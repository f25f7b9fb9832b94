"""Intel's extension for PyTorch as a contender: what importing it changes, and ipex.optimize on modules."""

from collections.abc import Callable, Sequence
from functools import partial

import intel_extension_for_pytorch as ipex
import torch

from ..case import DTYPES
from . import engine_torch, torch_functions
from .rows import Classifier, PeerRow
from .torch_call import TorchCall, module_call


def setup(arguments: Sequence[str], threads: int) -> None:
    """Nothing to set: the import did it."""


def versions() -> dict[str, str]:
    return {"intel_extension_for_pytorch": ipex.__version__, "torch": torch.__version__}


def contenders(row: PeerRow) -> dict[str, Callable]:
    """torch's contenders; modules in inference go through ipex.optimize."""
    if row.backward or isinstance(row.work, Classifier) or not row.has_parameters:
        return engine_torch.contenders(row)
    return {name: partial(_optimized, row, make) for name, make in torch_functions.modules(row).items()}


def _optimized(row: PeerRow, construct: Callable, sets, differentiable) -> TorchCall:
    wrap = lambda module: ipex.optimize(module.eval(), dtype=DTYPES[row.dtype])  # noqa: E731
    return module_call(construct(), sets, differentiable, wrap)
