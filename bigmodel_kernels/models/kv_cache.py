"""Keys and values of the tokens so far, so that a new token costs one row of attention."""

import torch
from torch import Tensor

from bigmodel_kernels import functional


class KVCache:
    """Of all layers: [batch, kv_heads, capacity, features] each, in memory from the start.

    `length` columns are filled; who runs the layers raises it once all of them have added theirs.
    """

    def __init__(self, config, batch: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (batch, config.key_heads, capacity, config.features)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.length = 0

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Adds the new columns' key and value, and attends to all columns up to each query's own.

        This is the one place that reads the cache.
        """
        last = self.length + key.size(2)
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.length : last] = key
        values[:, :, self.length : last] = value
        return functional.attention(query, keys[:, :, :last], values[:, :, :last], mask=mask, causal="bottom_right")

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was: beams that go on."""
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[:, :, : self.length] = tensor[rows, :, : self.length]
