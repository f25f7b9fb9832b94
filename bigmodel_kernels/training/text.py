"""The text that comes with CPython: the help topics of pydoc, some 465,000 characters of English about Python.

Source: CPython's Lib/pydoc_data/topics.py, made from the Python language reference (PSF licence).
"""

import pydoc_data.topics
from dataclasses import dataclass

import torch
from torch import Tensor

from .steps import generator_of

VOCABULARY = 256  # bytes of UTF-8
HELD_OUT = 0.05


@dataclass(frozen=True)
class Text:
    """Tokens, int64 [n]; the held-out part, which is never trained on, is the end of the text."""

    trained: Tensor
    held_out: Tensor


def load_text() -> Text:
    """All topics, one after the other in the order of their names."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    tokens = torch.tensor(list(text.encode()), dtype=torch.int64)
    first = round(len(tokens) * (1 - HELD_OUT))
    return Text(tokens[:first], tokens[first:])


def windows(tokens: Tensor, count: int, length: int, *seed: int) -> tuple[Tensor, Tensor]:
    """`count` runs of `length` tokens from random places, and for each token the one that follows it; the places are
    decided by the numbers `seed`."""
    starts = torch.randint(len(tokens) - length, (count,), generator=generator_of(*seed))
    runs = tokens[starts[:, None] + torch.arange(length + 1)]
    return runs[:, :-1], runs[:, 1:]
