"""A mask that is not in memory until someone looks at it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class DeferredMask(Tensor):
    """A boolean mask [batch, 1, q_len, kv_len] (True: may attend) that attention can do without.

    `options()` says the same in `bmk.attention`'s arguments, with a mask of [batch, 1, 1, kv_len] at most; of packed
    sequences `packed()` says it in those of `bmk.attention_varlen`. To everyone else it is the boolean tensor: the
    first operation on it builds that tensor, and so it stays right in a model that slices, moves or changes its mask.

    Args:
        shape, device: of the boolean tensor.
        padding: [batch, kv_len], True where a key may be seen, or None.
        causal, window: as `bmk.attention` takes them.
        build: returns the boolean tensor.
        starts: of the sequences in rows of packed ones, as `bmk.attention_varlen` takes them, or None.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], device, padding, causal, window, build: Callable[[], Tensor], starts=None):
        return Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)

    def __init__(
        self, shape, device, padding: Tensor | None, causal: bool | str, window, build, starts: Tensor | None = None
    ) -> None:
        self._options = {
            "mask": None if padding is None else padding[:, None, None, :],
            "causal": causal,
            "window": window,
        }
        self._starts = starts
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
        if self._built is not None or self._starts is not None:
            return {"mask": self.built(), "causal": False, "window": None}
        return dict(self._options)

    def packed(self) -> tuple[Tensor, dict] | None:
        """Where packed sequences start among all tokens of the batch, and `causal` and `window` of
        `bmk.attention_varlen`; None where there are none, or someone has looked at the mask and may have changed it."""
        if self._starts is None or self._built is not None:
            return None
        return self._starts, {name: self._options[name] for name in ("causal", "window")}
