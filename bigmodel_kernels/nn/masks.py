"""torch.nn's attention masks, turned into the one mask of ``bigmodel_kernels.attention``."""

import warnings

import torch
from torch import Tensor


def may_attend(mask: Tensor, extra_keys: int) -> Tensor:
    """THE change of polarity: torch.nn's boolean masks are True where a key is masked out, ours where it may be read.

    An additive mask has no polarity. `extra_keys` keys that every query may attend to (add_bias_kv, add_zero_attn) are
    appended to the last dimension.
    """
    mask = mask if mask.is_floating_point() else ~mask
    if extra_keys:
        everyone = 0.0 if mask.is_floating_point() else True
        mask = torch.nn.functional.pad(mask, (0, extra_keys), value=everyone)
    return mask


def check_mask_types(attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> None:
    """torch.nn's errors and warnings about mask dtypes: boolean or floating, better both the same."""
    for name, mask in (("key_padding_mask", key_padding_mask), ("attn_mask", attn_mask)):
        if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
            raise AssertionError(f"only bool and floating types of {name} are supported")
    if attn_mask is None or key_padding_mask is None or torch.compiler.is_compiling():  # a graph cannot warn
        return
    if attn_mask.dtype != key_padding_mask.dtype:
        warnings.warn(
            "Support for mismatched key_padding_mask and attn_mask is deprecated. Use same type for both instead.",
            stacklevel=2,
        )


def merged_mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, *, heads: int, extra_keys: int = 0
) -> Tensor | None:
    """One mask that broadcasts to [batch, heads, q_len, kv_len + extra_keys], boolean (True = may attend) or additive.

    `attn_mask` is [q_len, kv_len] or [batch * heads, q_len, kv_len], `key_padding_mask` [batch, kv_len]; either may be
    boolean (torch.nn's polarity: True = masked out) or additive. A mask given alone keeps its size.
    """
    masks = []
    if attn_mask is not None:
        per_head = attn_mask.dim() == 3
        attn_mask = may_attend(attn_mask, extra_keys)
        masks.append(attn_mask.unflatten(0, (-1, heads)) if per_head else attn_mask[None, None])
    if key_padding_mask is not None:
        masks.append(may_attend(key_padding_mask, extra_keys)[:, None, None, :])
    if len(masks) < 2:
        return masks[0] if masks else None

    first, second = masks
    if first.dtype == torch.bool and second.dtype == torch.bool:
        return first & second
    if first.dtype == torch.bool:
        first, second = second, first
    if second.dtype == torch.bool:
        return torch.where(second, first, float("-inf"))
    return first + second


def is_causal_mask(attn_mask: Tensor | None, hint: bool | None, length: int) -> bool:
    """Whether `attn_mask` is causal: as the hint says, else by looking, as torch.nn's stacks of layers do.

    Looking needs the mask's values, which a graph being compiled or exported does not have; there the mask is then used
    as it is, with the same result.
    """
    if hint is not None or attn_mask is None:
        return hint is True
    if attn_mask.shape != (length, length) or torch.compiler.is_compiling():
        return False
    causal = torch.ones(length, length, dtype=torch.bool, device=attn_mask.device).triu(diagonal=1)
    if attn_mask.is_floating_point():
        causal = torch.zeros_like(attn_mask).masked_fill_(causal, float("-inf"))
    return attn_mask.dtype == causal.dtype and torch.equal(attn_mask, causal)
