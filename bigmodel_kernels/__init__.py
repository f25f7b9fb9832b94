"""Fused attention and feed-forward kernels for PyTorch: see the README for a tour.

The functions live in `functional`, the modules in `nn`, whole models in `models`, and what swaps the modules of an
existing model in `integrations`.
"""

import importlib
import platform

import torch  # first: it loads the libraries that the extension is linked with

__version__ = "0.1.0"

try:
    from bigmodel_kernels import _C
except ImportError as error:
    raise ImportError(
        f"bigmodel_kernels cannot load its compiled extension (bigmodel_kernels._C): {error}. "
        f"This is Python {platform.python_version()} with torch {torch.__version__}; the extension needs torch 2.10 or "
        "newer and a build for this Python. Build it again in the project's folder with: "
        "pip install --no-build-isolation --force-reinstall --no-deps ."
    ) from error

from bigmodel_kernels import ops

ops.register("bigmodel")

# Where each public name lives. A submodule is imported when one of its names is first asked for.
_HOMES = {
    "functional": [
        "add_norm",
        "attention",
        "attention_decode",
        "attention_varlen",
        "attention_weights",
        "feed_forward",
        "linear",
        "linear_cross_entropy",
        "rotary",
        "scaled_dot_product_attention",
    ],
    "backends": ["explain", "info", "use_backend"],
    "integrations": ["replace_modules"],
    "warming": ["warm_up"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_SUBMODULES = ["functional", "integrations", "models", "nn"]

cpu_target = _C.cpu_target
release_workspace = _C.release_workspace
set_cpu_target = _C.set_cpu_target
supported_cpu_targets = _C.supported_cpu_targets

__all__ = [
    *sorted(_HOME_OF),
    *_SUBMODULES,
    "cpu_target",
    "release_workspace",
    "set_cpu_target",
    "supported_cpu_targets",
]


def __getattr__(name):
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'bigmodel_kernels' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return [*globals(), *__all__]
