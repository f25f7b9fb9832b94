"""Keys and values of the tokens so far, so that a new token costs one row of attention."""

import torch
from torch import Tensor

from bigmodel_kernels import functional


class KVCache:
    """Of all layers: [batch, kv_heads, capacity, features] each, in memory from the start.

    Of sequence b the first lengths[b] entries are filled, `longest` of the longest one; who runs the layers calls
    `advance` once all of them have added theirs. Keys and values are written in place: no gradient goes through them.
    """

    def __init__(self, config, batch: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (batch, config.key_heads, capacity, config.features)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.longest = 0

    def positions(self, count: int) -> Tensor:
        """Where each sequence's next `count` entries go: [batch, count]."""
        return self.lengths[:, None] + torch.arange(count, device=self.lengths.device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Adds the new entries' key and value, and attends to all entries of a sequence up to each query's own.

        This is the one place that reads the cache.
        """
        keys, values = self.keys[layer], self.values[layer]
        if self.longest == 0:
            keys[:, :, : key.size(2)] = key
            values[:, :, : value.size(2)] = value
            return functional.attention(query, key, value, causal=True)
        return functional.attention_decode(query, keys, values, self.lengths, new_key=key, new_value=value)

    def advance(self, count: int) -> None:
        """The entries that all layers have just added are filled."""
        self.lengths = self.lengths + count
        self.longest += count

    def truncate(self, lengths: Tensor) -> None:
        """Forgets the entries of sequence b from lengths[b] on: they were padding."""
        self.lengths, self.longest = lengths, int(lengths.max())

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was: beams that go on."""
        self.lengths = self.lengths[rows]
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[:, :, : self.longest] = tensor[rows, :, : self.longest]
