"""Rotary position embedding as a module: tables of angles, kept from call to call."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from bigmodel_kernels import functional


@dataclass(frozen=True)
class RotaryScaling:
    """Slower turns, for sequences longer than those a model began with.

    All frequencies are divided by ``factor`` (Chen et al., "Extending context window of large language models via
    positional interpolation", 2023). Or, with a ``length``, as in Llama 3.1 (Grattafiori et al., 2024), those that turn
    fewer than ``low`` times in so many positions; those that turn more than ``high`` times stay, and what is between
    goes over from one to the other.

    Raises ValueError for a factor or length that is not positive, or unless 0 < low < high.
    """

    factor: float
    length: int | None = None
    low: float = 1.0
    high: float = 4.0

    def __post_init__(self) -> None:
        if not (self.factor > 0 and (self.length is None or self.length > 0) and 0 < self.low < self.high):
            raise ValueError(f"[RotaryScaling] got {self}: expected positive numbers, and a low below high")

    def __call__(self, frequencies: Tensor) -> Tensor:
        """frequencies, in radians a position, scaled."""
        if self.length is None:
            return frequencies / self.factor
        turns = frequencies * self.length / (2 * math.pi)
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        return frequencies * (kept + (1.0 - kept) / self.factor)


class RotaryEmbedding(torch.nn.Module):
    """Turns query and key by their positions (Su et al., 2021), by ``bmk.rotary``; no parameters, an empty state_dict.

    Pair i turns by position * theta^(-2 i / dim). The table of cosines and sines is computed in float64, kept in
    float32 on each device that asks for it, whatever the model's dtype, and doubled when a longer sequence comes.

    Args:
        dim: how many of a head's features are turned, even.
        theta: the base of the frequencies.
        interleaved: False pairs feature i with i + dim / 2, True 2 i with 2 i + 1.
        max_positions: rows that the table has from the start; ``positions`` that are given may not exceed the table.
        scaling: of the frequencies; None: as they are.

    Raises ValueError for a dim that is not positive and even, or a theta or max_positions that is not positive.
    """

    def __init__(
        self,
        dim: int,
        theta: float = 10000.0,
        interleaved: bool = False,
        max_positions: int = 2048,
        scaling: RotaryScaling | None = None,
    ) -> None:
        super().__init__()
        if dim <= 0 or dim % 2 or theta <= 0 or max_positions <= 0:
            raise ValueError(
                f"[RotaryEmbedding] dim, theta and max_positions are {dim}, {theta} and {max_positions}: "
                "expected an even dim and positive numbers"
            )
        self.dim, self.theta, self.interleaved, self.max_positions = dim, theta, interleaved, max_positions
        self.scaling = scaling
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def tables(self, device: torch.device, rows: int) -> tuple[Tensor, Tensor]:
        """cos and sin [at least rows, dim / 2] in float32."""
        if rows > self.max_positions:
            self.max_positions = max(rows, 2 * self.max_positions)
        kept = self._tables.get(device)
        if kept is None or kept[0].size(0) < self.max_positions:
            with torch.inference_mode(False):  # tables of a generation serve a training step too
                pairs = torch.arange(0, self.dim, 2, dtype=torch.float64, device=device)
                positions = torch.arange(self.max_positions, dtype=torch.float64, device=device)
                frequencies = self.theta ** (-pairs / self.dim)
                angles = positions[:, None] * (self.scaling(frequencies) if self.scaling else frequencies)
                kept = angles.cos().float(), angles.sin().float()
            if not isinstance(kept[0], FakeTensor):
                self._tables[device] = kept
        return kept

    def forward(
        self, query: Tensor, key: Tensor | None, positions: Tensor | None = None, inplace: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """query [batch, heads, length, head_dim] and key [batch, kv_heads, length, head_dim], turned; positions,
        [length] or [batch, length] in int64, are 0, 1, 2, ... by default. inplace: over query and key themselves."""
        cos, sin = self.tables(query.device, query.size(2))
        return functional.rotary(query, key, cos, sin, positions, interleaved=self.interleaved, inplace=inplace)

    def extra_repr(self) -> str:
        scaling = f", scaling={self.scaling}" if self.scaling else ""
        return f"{self.dim}, theta={self.theta}, interleaved={self.interleaved}{scaling}"
