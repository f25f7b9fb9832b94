"""torch as a contender. Arguments: "medium" for set_float32_matmul_precision("medium"), "compile" for inductor."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from ..case import Inputs
from . import torch_functions
from .rows import Classifier, PeerRow
from .torch_call import TorchCall, TrainingStep, function_call, module_call

_wrap: Callable = lambda function: function  # noqa: E731


def setup(arguments: Sequence[str], threads: int) -> None:
    """Sets what the arguments name, once per process."""
    if "medium" in arguments:
        torch.set_float32_matmul_precision("medium")
    if "compile" in arguments:
        use_compiler("inductor")


def use_compiler(backend: str) -> None:
    """All contenders of this process go through torch.compile with this backend."""
    global _wrap
    if backend == "inductor":
        from torch._inductor import config

        config.freezing = True  # takes effect for inference on modules' parameters
    _wrap = partial(torch.compile, backend=backend, dynamic=False)


def versions() -> dict[str, str]:
    return {"torch": torch.__version__}


def contenders(row: PeerRow) -> dict[str, Callable[..., TorchCall | TrainingStep]]:
    """Variant -> what makes it from (sets of inputs, names of the differentiable ones)."""
    if isinstance(row.work, Classifier):
        return {"": lambda sets, differentiable: TrainingStep(row.work, nn.MultiheadAttention, sets[0], _wrap)}
    if row.has_parameters:
        return {variant: partial(_module, construct) for variant, construct in torch_functions.modules(row).items()}
    return {
        variant: partial(_function, function, names)
        for variant, (function, names) in torch_functions.functions(row).items()
    }


def _module(construct: Callable[[], nn.Module], sets: Sequence[Inputs], differentiable: tuple[str, ...]) -> TorchCall:
    return module_call(construct(), sets, differentiable, _wrap)


def _function(function: Callable, names, sets: Sequence[Inputs], differentiable: tuple[str, ...]) -> TorchCall:
    return function_call(_wrap(function), names, sets, differentiable)
