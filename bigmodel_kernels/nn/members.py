"""Parameters and other members of modules by name, from where torch keeps them: as attributes it finds them last, which
costs a layer of a few tokens as much as its norms."""

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from bigmodel_kernels.functional import small_layers

# Those of all modules, in torch's own dictionaries.
GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)

# A submodule by name, the classes one of which it must be, and the members that are wanted of it, parameters or not.
# None as the name, without classes: of the module itself.
Part = tuple[str | None, tuple[type[torch.nn.Module], ...], tuple[str, ...]]


def parameter(module: torch.nn.Module, name: str) -> Tensor | None:
    kept = module._parameters
    return kept[name] if name in kept else getattr(module, name)


def plain_members(module: torch.nn.Module, parts: tuple[Part, ...]) -> list | None:
    """What the parts name, in one list; None unless each submodule does exactly what its class does when it is called,
    as fusion.is_plain says. Only for x of which small_layers.is_small."""
    return None if any(GLOBAL_HOOKS) else small_layers.plain_members(module, parts)
