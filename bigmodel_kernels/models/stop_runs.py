"""What ends a sequence that is generated: a token, or several in a row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bigmodel_kernels.models.prompts import whole_numbers


@dataclass(frozen=True)
class StopRuns:
    """Runs of tokens, each of which ends the sequence that generates it and is no part of the result."""

    runs: list[list[int]]

    @classmethod
    def of(cls, stop) -> "StopRuns":
        """stop: a token, or tokens and sequences of tokens. Raises ValueError for anything else."""
        try:
            each = [stop] if _is_token(stop) else list(stop)
        except TypeError:
            raise ValueError(f"[generate] stop is {stop!r}: expected tokens or sequences of tokens") from None
        runs = [whole_numbers("stop", [run] if _is_token(run) else run) for run in each]
        if [] in runs:
            raise ValueError("[generate] stop holds an empty sequence: expected at least one token")
        return cls(runs)

    def ended(self, tokens: Sequence[int]) -> int:
        """The length of the longest run that the tokens end with; 0: of none."""
        return max((len(run) for run in self.runs if tokens[-len(run) :] == run), default=0)

    def begun(self, tokens: Sequence[int]) -> int:
        """How many of the last tokens may turn out to be the beginning of a run."""
        longest = max(map(len, self.runs), default=1) - 1
        for count in range(min(longest, len(tokens)), 0, -1):
            if any(len(run) > count and run[:count] == tokens[-count:] for run in self.runs):
                return count
        return 0

    def ended_rows(self, tokens: Tensor, lengths: Tensor, generated: Tensor, chosen: Tensor) -> Tensor:
        """`ended` of each row's generated[b] last tokens of tokens[b, :lengths[b]] with chosen[b] behind them."""
        result = torch.zeros_like(chosen)
        for run in self.runs:
            *first, last = run
            before = len(first)
            places = lengths[:, None] + torch.arange(-before, 0, device=tokens.device)
            same = tokens.gather(1, places.clamp(min=0)) == torch.tensor(
                first, dtype=tokens.dtype, device=tokens.device
            )
            ends = (chosen == last) & (generated >= before) & same.all(-1)
            result = torch.where(ends, result.clamp(min=len(run)), result)
        return result


def _is_token(value) -> bool:
    return value.dim() == 0 if isinstance(value, Tensor) else hasattr(value, "__index__")
