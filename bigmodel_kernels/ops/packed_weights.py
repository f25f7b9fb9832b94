"""Weights in the kernels' own layout, kept while they stay unchanged, so that inference lays each weight out once.

A weight is packed at its second use without a change between, so that weights used once cost nothing. An entry is
valid while the weight's address, version counter, CPU target and a fingerprint of all its elements (a write through
`.data` or numpy leaves the counter alone) are the same; it goes when the weight dies. Memory is bounded: a newcomer may
push out only what was last used before the newcomer's own previous use, so that a model too large for the limit keeps
part of its weights packed instead of packing all of them anew in every pass.

Called in eager mode only, for weights that take no gradient in the call; for those with contiguous rows only where more
than `few_rows` rows are multiplied.
"""

import os
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _C
from . import direct

LIMIT_BYTES = int(os.environ.get("BIGMODEL_PACKED_WEIGHTS_MB", "1024")) << 20
MAX_ENTRIES = 8192


@dataclass
class _Entry:
    owner: weakref.ref
    state: tuple
    last_used: int
    packed: Tensor | None = None

    @property
    def bytes(self) -> int:
        return 0 if self.packed is None else self.packed.numel()


class _Cache:
    def __init__(self):
        self.entries: OrderedDict[tuple, _Entry] = OrderedDict()  # least recently used first
        self.bytes = 0
        self.clock = 0
        # Reentrant: the death of a weight, noticed while the lock is held, takes it again.
        self.lock = threading.RLock()

    def lookup(self, weight: Tensor) -> Tensor | None:
        owner = weight if weight._base is None else weight._base
        key = (id(owner), weight.storage_offset(), weight.shape, weight.stride())
        state = _state(weight)
        with self.lock:
            self.clock += 1
            entry = self.entries.get(key)
            if entry is None or entry.owner() is not owner or entry.state != state:
                self.drop(key)
                self.entries[key] = _Entry(weakref.ref(owner, lambda _: self.drop(key)), state, self.clock)
                while len(self.entries) > MAX_ENTRIES:
                    self.drop(next(iter(self.entries)))
                return None
            previous_use, entry.last_used = entry.last_used, self.clock
            self.entries.move_to_end(key)
            if entry.packed is None:
                self.admit(entry, weight, previous_use)
            return entry.packed

    def admit(self, entry: _Entry, weight: Tensor, previous_use: int) -> None:
        """Packs the weight if it fits beside everything used since its own previous use."""
        wanted = weight.numel() * weight.element_size()
        older = [
            key for key, other in self.entries.items() if other.packed is not None and other.last_used < previous_use
        ]
        room = LIMIT_BYTES - self.bytes + sum(self.entries[key].bytes for key in older)
        if wanted > room:
            return
        packed = torch.ops.bigmodel.linear_pack(weight.detach())
        if packed.numel() > room:
            return
        for key in older:
            if self.bytes + packed.numel() <= LIMIT_BYTES:
                break
            self.drop(key)
        entry.packed = packed
        self.bytes += packed.numel()

    def drop(self, key: tuple) -> None:
        with self.lock:
            entry = self.entries.pop(key, None)
            if entry is not None:
                self.bytes -= entry.bytes


_cache = _Cache()


def lookup(weight: Tensor) -> Tensor | None:
    """The packed form of a weight [out_features, in_features], or None where packing on the way is better."""
    if type(weight) not in (Tensor, torch.nn.Parameter) or weight.device.type != "cpu" or weight.is_inference():
        return None
    if weight.dim() != 2 or weight.numel() < _C.LEAST_PACKED_ELEMENTS or weight.is_neg() or not direct.possible():
        return None
    return _cache.lookup(weight)


def few_rows(dtype: torch.dtype, weight_elements: int) -> int:
    """So many rows gain nothing from a packed form of a weight of so many elements: python/src/packed_weight.h."""
    return _C.few_rows(dtype == torch.bfloat16, weight_elements)


def clear() -> None:
    """Forgets all packed weights."""
    with _cache.lock:
        _cache.entries.clear()
        _cache.bytes = 0


def packed_bytes() -> int:
    """Bytes that packed weights hold now."""
    return _cache.bytes


def _state(weight: Tensor) -> tuple:
    """What changes when the weight's contents may have: see the module's docstring."""
    fingerprint = direct.OPS.weight_fingerprint(weight)
    return weight.data_ptr(), weight._version, weight.dtype, _C.cpu_target(), fingerprint
