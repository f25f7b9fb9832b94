"""Shapes of attention_decode, which has no gradient."""

import torch

from .attention import empty_in_order_of


def register(namespace: str) -> None:
    """Attaches the fake to the op of a namespace that holds the schemas of library.cpp."""
    torch.library.register_fake(f"{namespace}::attention_decode", _fake)


def _fake(query, key_cache, value_cache, cache_lengths, *others, **options):
    output = empty_in_order_of(query, value_cache.shape[3])
    return output, query.new_empty(query.shape[:3], dtype=torch.float32)
