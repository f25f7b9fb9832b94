"""The ways that PyTorch has to attention on a CUDA device, as contenders: scaled_dot_product_attention with each of its
backends forced, and FlexAttention compiled. Which of them run depends on device, dtype and shape; one that does not
stays in the table with torch's reason."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from .case import Inputs

SDPA_BACKENDS = {
    "torch flash": SDPBackend.FLASH_ATTENTION,
    "torch efficient": SDPBackend.EFFICIENT_ATTENTION,
    "torch cudnn": SDPBackend.CUDNN_ATTENTION,
    "torch math": SDPBackend.MATH,
}


def forced(backend: SDPBackend, call: Callable[[Inputs], Tensor]) -> Callable[[Inputs], Tensor]:
    """The call with scaled_dot_product_attention's choice taken away. The backward pass follows the forward one."""

    def run(inputs: Inputs) -> Tensor:
        with sdpa_kernel(backend):
            return call(inputs)

    return run


def with_flex(causal: bool, lengths: tuple[int, ...] | None, compiled: bool = True) -> Callable[[Inputs], Tensor]:
    """FlexAttention. lengths: keys beyond these, one number per sequence, are padding. compiled: as it is meant to be
    used; otherwise as plain PyTorch that materialises the scores."""

    def run(inputs: Inputs) -> Tensor:
        query, key, value = inputs["query"], inputs["key"], inputs["value"]
        mask = _block_mask(causal, lengths, query.shape[2], key.shape[2], str(query.device))
        attend = _compiled_flex() if compiled else flex_attention
        return attend(query, key, value, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1])

    return run


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    # One compilation for each shape, dtype and mask. Beyond this limit torch would go on uncompiled; with fullgraph it
    # raises instead.
    torch._dynamo.config.recompile_limit = 256
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


@functools.cache
def _block_mask(
    causal: bool, lengths: tuple[int, ...] | None, q_len: int, kv_len: int, device: str
) -> BlockMask | None:
    """Which blocks there are to compute; made once, as a user would."""
    if not causal and lengths is None:
        return None
    ends = torch.tensor(lengths or (kv_len,), device=device)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        inside = key < ends[batch]
        return inside & (key <= query) if causal else inside

    def below(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key <= query

    if lengths is None:
        return create_block_mask(below, None, None, q_len, kv_len, device=device)
    return create_block_mask(seen, len(lengths), None, q_len, kv_len, device=device)
