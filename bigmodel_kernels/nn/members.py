"""Parameters and submodules by name, from where torch keeps them: as attributes it finds them last, which costs a layer
of a few tokens as much as its norms."""

import torch
from torch import Tensor


def parameter(module: torch.nn.Module, name: str) -> Tensor | None:
    kept = module._parameters
    return kept[name] if name in kept else getattr(module, name)


def parameters(module: torch.nn.Module, *names: str) -> list[Tensor | None]:
    return [parameter(module, name) for name in names]


def submodules(module: torch.nn.Module, *names: str) -> list[torch.nn.Module]:
    kept = module._modules
    return [kept[name] if name in kept else getattr(module, name) for name in names]
