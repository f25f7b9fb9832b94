"""Which of the known launches runs: one on trial, the caller's own, one measured on the device, or the default.

A launch is looked up by a key: the kind of product or pass of attention, the arithmetic, and the sizes that matter.
Nothing here measures anything: a table of measured launches comes from `use_measured`'s source, and `trying` is for
whoever looks for better launches.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

Key = tuple  # (kind or pass, arithmetic, sizes...)
Source = Callable[[torch.device], Mapping[Key, Any]]


class _State:
    source: Source | None = None
    measured: dict[torch.device, Mapping[Key, Any]] = {}  # what the source gave, once per device
    on_trial: str | None = None
    candidate: Any = None
    asked: dict[Key, Any] = {}


def choose(device: torch.device | None, key: Key, override: Any | None, default: Callable[[], Any]) -> Any:
    """The launch of a key. override: what the caller set for it. device: None where no device has measured anything."""
    if key[0] == _State.on_trial:
        _State.asked[key] = default() if _State.candidate is None else _State.candidate
        return _State.asked[key]
    if override is not None:
        return override
    return _measured(device).get(key) or default()


def use_measured(source: Source | None) -> None:
    """From now on, asks the source for a device's table at the first launch there; None: no tables."""
    _State.source = source
    forget_measured()


def forget_measured() -> None:
    """Asks the source again at the next launch."""
    _State.measured = {}


@contextlib.contextmanager
def trying(name: str, launch: Any | None) -> Iterator[dict[Key, Any]]:
    """While it runs, every launch of this kind or pass is the given one; None: the default, whatever was set or
    measured. Gives a table of what was asked for, filled by the calls inside. One thread at a time."""
    _State.on_trial, _State.candidate, _State.asked = name, launch, {}
    try:
        yield _State.asked
    finally:
        _State.on_trial = _State.candidate = None


def _measured(device: torch.device | None) -> Mapping[Key, Any]:
    if device is None or _State.source is None:
        return {}
    if device not in _State.measured:
        _State.measured[device] = _State.source(device)
    return _State.measured[device]
