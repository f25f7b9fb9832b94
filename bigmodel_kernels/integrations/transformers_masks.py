"""Masks of Hugging Face models, as options of attention where that says it all.

transformers describes a mask by a function of (batch, head, query, key) indices. The usual ones (causal, sliding
window, everything) are recognised; with padding, or of packed sequences, they become a DeferredMask, and no [q_len,
kv_len] mask is built. Every other one (chunks, blocks of an image, functions of a user) becomes the boolean mask that
transformers' "sdpa" would get.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, masking_utils

from bigmodel_kernels.integrations.deferred_mask import DeferredMask


class Pattern(NamedTuple):
    """What a mask function keeps: what is causal and within a window, as bmk.attention takes it, and of one sequence.

    sequences: [batch, q_len], the number of each token's sequence, in rows of packed ones. by_position: causal and
    window count the tokens of each sequence, and say nothing where it is not known which these are."""

    causal: bool = False
    window: tuple[int, int] | None = None
    sequences: Tensor | None = None
    by_position: bool = False


def mask_for_attention(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs,
) -> Tensor | None:
    """A mask function of transformers' interface; arguments as `transformers.masking_utils.sdpa_mask`.

    Returns a DeferredMask, a boolean mask [batch, 1, q_len, kv_len], or None with the meaning that it has for "sdpa".

    Raises ValueError for the mask of a model that attends by itself: it would add a boolean mask to its scores.
    """
    _check_attends_by_interface(type(kwargs.get("config")))
    arguments = {
        "batch_size": batch_size,
        "q_length": q_length,
        "kv_length": kv_length,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": mask_function,
        "attention_mask": attention_mask,
        "device": device,
        **kwargs,
    }
    # A single query's mask is small, and it goes into compiled decoding, where it must be a plain tensor.
    pattern = None if q_length == 1 or torch.compiler.is_compiling() else _pattern(mask_function)
    diagonal = None if pattern is None else _diagonal(pattern, q_length, kv_length, int(q_offset), kv_offset)
    packed = pattern is not None and pattern.sequences is not None
    if packed and not _one_after_the_other(pattern.sequences, attention_mask, q_length, kv_length):
        diagonal = None
    if diagonal is None or (pattern.by_position and not packed):
        return masking_utils.sdpa_mask(**arguments)
    never_none = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return DeferredMask(
        (batch_size, 1, q_length, kv_length),
        device,
        _padding(attention_mask, kv_length, kv_offset),
        diagonal if pattern.causal else False,
        pattern.window,
        functools.partial(masking_utils.sdpa_mask, **(arguments | never_none)),
        _starts(pattern.sequences.expand(batch_size, -1)) if packed else None,
    )


@torch.compiler.assume_constant_result
@functools.cache
def _check_attends_by_interface(config_class: type) -> None:
    """Raises ValueError where no model with such a config takes its attention from transformers' interface, which
    transformers itself asks only where it changes a model that exists."""
    models = [model for model in _subclasses(PreTrainedModel) if model.config_class is config_class]
    modules = [sys.modules[name] for name in {model.__module__ for model in models} if name in sys.modules]
    if modules and all(_attends_by_itself(module) for module in modules):
        raise ValueError(
            f"[transformers] {models[0].__name__} computes attention by itself, not by transformers' attention "
            "interface, so that attn_implementation='bigmodel' has no part in it; expected attn_implementation='eager'"
        )


def _subclasses(of: type) -> Iterator[type]:
    for one in of.__subclasses__():
        yield one
        yield from _subclasses(one)


def _attends_by_itself(module) -> bool:
    """Whether a module of models has attention layers of its own and does not know the interface."""
    layers = (each for name, each in vars(module).items() if "Attention" in name and inspect.isclass(each))
    own = any(issubclass(layer, nn.Module) and layer.__module__ == module.__name__ for layer in layers)
    return own and not hasattr(module, "ALL_ATTENTION_FUNCTIONS")


def _one_after_the_other(sequences: Tensor, attention_mask: Tensor | None, q_length: int, kv_length: int) -> bool:
    """Whether each row is sequences one after the other, without padding, whose queries and keys are all here."""
    whole = attention_mask is None and q_length == kv_length == sequences.shape[1]
    return whole and bool((sequences.diff(dim=-1) >= 0).all())


def _starts(sequences: Tensor) -> Tensor:
    """Where sequences start among all tokens of a batch of rows, and the number of these tokens."""
    first = torch.ones_like(sequences, dtype=torch.bool)
    first[:, 1:] = sequences[:, 1:] != sequences[:, :-1]
    places = first.flatten().nonzero().flatten().to(torch.int32)
    return torch.cat([places, places.new_tensor([first.numel()])])


def _padding(attention_mask: Tensor | None, kv_length: int, kv_offset: int) -> Tensor | None:
    """[batch, kv_length], True where a key is no padding; None without padding."""
    if attention_mask is None:
        return None
    padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    padding = padding[:, kv_offset : kv_offset + kv_length].bool()
    return None if padding.all() else padding


def _diagonal(pattern: Pattern, q_length: int, kv_length: int, q_offset: int, kv_offset: int) -> str | None:
    """Where query i stands among the keys: at i ("top_left") or at i + kv_length - q_length ("bottom_right"); None for
    elsewhere, which `bmk.attention` has no option for (a static cache that is half full)."""
    shift = q_offset - kv_offset
    if shift == kv_length - q_length or (not pattern.causal and pattern.window is None):
        return "bottom_right"
    return "top_left" if pattern.causal and shift == 0 else None


def _pattern(mask_function: Callable) -> Pattern | None:
    """What a mask function of transformers keeps, or None for one that is not recognised."""
    if mask_function is masking_utils.causal_mask_function:
        return Pattern(causal=True)
    if mask_function is masking_utils.bidirectional_mask_function:
        return Pattern()
    if not inspect.isfunction(mask_function) or mask_function.__module__ != masking_utils.__name__:
        return None
    maker = mask_function.__qualname__.partition(".")[0]
    made_with = inspect.getclosurevars(mask_function).nonlocals
    if maker == "sliding_window_overlay":
        return Pattern(window=(made_with["sliding_window"] - 1, -1))
    if maker == "sliding_window_bidirectional_overlay":
        return Pattern(window=(made_with["sliding_window"], made_with["sliding_window"]))
    if maker == "packed_sequence_mask_function":
        return Pattern(sequences=made_with["packed_sequence_mask"])
    if maker == "remap_positions_for_packed_sequence":
        inner = _pattern(made_with["mask_function"])
        return None if inner is None else inner._replace(by_position=True)
    if maker == "and_masks":
        return _both([_pattern(function) for function in made_with["mask_functions"]])
    return None


def _both(patterns: list[Pattern | None]) -> Pattern | None:
    """What all of the patterns keep; None where one is not recognised, or two have a window or sequences."""
    if None in patterns:
        return None
    windows = [pattern.window for pattern in patterns if pattern.window is not None]
    packings = [pattern.sequences for pattern in patterns if pattern.sequences is not None]
    if len(windows) > 1 or len(packings) > 1:
        return None
    return Pattern(
        any(pattern.causal for pattern in patterns),
        windows[0] if windows else None,
        packings[0] if packings else None,
        any(pattern.by_position for pattern in patterns),
    )
