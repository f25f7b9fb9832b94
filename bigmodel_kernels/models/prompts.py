"""Tokens as callers give them, as lists of int."""

import operator
import reprlib

from torch import Tensor


def as_lists(prompts) -> list[list[int]]:
    """Sequences of tokens, or a tensor [batch, length]. Raises ValueError for anything else."""
    if isinstance(prompts, Tensor) and prompts.dim() != 2:
        raise ValueError(f"[generate] prompts has shape {list(prompts.shape)}: expected [batch, length]")
    try:
        each = list(prompts)
    except TypeError:
        raise ValueError(f"[generate] prompts is {prompts!r}: expected a sequence of tokens for each prompt") from None
    return [whole_numbers(f"prompt {index}", prompt) for index, prompt in enumerate(each)]


def whole_numbers(name: str, tokens) -> list[int]:
    """Tokens as a list. Raises ValueError for what is no sequence of them."""
    try:
        return [operator.index(token) for token in (tokens.tolist() if isinstance(tokens, Tensor) else tokens)]
    except TypeError:
        raise ValueError(f"[generate] {name} is {reprlib.repr(tokens)}: expected a sequence of whole numbers") from None
