"""A mask that is not in memory until someone looks at it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class DeferredMask(Tensor):
    """A boolean mask [batch, 1, q_len, kv_len] (True: may attend) that attention can do without.

    `options()` says the same in `bmk.attention`'s arguments, with a mask of [batch, 1, 1, kv_len] at most. To everyone
    else it is the boolean tensor: the first operation on it builds that tensor, and so it stays right in a model that
    slices, moves or changes its mask.

    Args:
        shape, device: of the boolean tensor.
        padding: [batch, kv_len], True where a key may be seen, or None.
        causal, window: as `bmk.attention` takes them.
        build: returns the boolean tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], device, padding, causal, window, build: Callable[[], Tensor]):
        return Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)

    def __init__(self, shape, device, padding: Tensor | None, causal: bool | str, window, build) -> None:
        self._options = {
            "mask": None if padding is None else padding[:, None, None, :],
            "causal": causal,
            "window": window,
        }
        self._build = build
        self._built: Tensor | None = None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(DeferredMask, DeferredMask.built, (args, kwargs or {}))
        return func(*args, **kwargs)

    def built(self) -> Tensor:
        """The boolean tensor. It is the mask from now on, since who asked may write to it."""
        if self._built is None:
            self._built = self._build().contiguous()  # an expanded tensor cannot be written to
        return self._built

    def options(self) -> dict:
        """`mask`, `causal` and `window` of `bmk.attention`."""
        if self._built is not None:
            return {"mask": self._built, "causal": False, "window": None}
        return dict(self._options)
