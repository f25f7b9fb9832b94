"""attn_implementation="bigmodel": Hugging Face models attend with bigmodel_kernels.

`register()` adds one function to transformers' interface of attention functions and one to its interface of masks
(transformers_masks.py). Models that are built on the interface then need no other change.
"""

import importlib
import re

import torch
from torch import Tensor

from bigmodel_kernels import functional
from bigmodel_kernels.integrations.deferred_mask import DeferredMask

NAME = "bigmodel"

# The interface of masks has had its present arguments since 5.4; nobody knows what 6 will change.
OLDEST, BEFORE = (5, 4), (6, 0)

# What some models pass on beside their mask, in a form that we do not compute: leaving it out would be silently wrong.
_NOT_COMPUTED = {
    "indices": "sparse attention by index",
    "block_indices": "sparse attention by block",
    "sinks": "one sink per query",
}


def register() -> str:
    """Makes ``attn_implementation="bigmodel"`` work for every model built on transformers' attention interface.

        from bigmodel_kernels.integrations.transformers import register

        register()
        model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="bigmodel")
        model.set_attn_implementation("bigmodel")  # or later, for a model that exists

    What eager attention computes is computed, with grouped keys, sliding windows, softcap (Gemma 2), sinks (gpt-oss),
    position bias (T5), padding on either side, packed sequences (`position_ids` or `cu_seq_lens_q`), every cache, and
    dropout in training. `output_attentions=True` returns the weights. A query that may see no key (padding) gives 0,
    where eager attention averages over keys that it must not see. Sparse attention by index (DeepSeek V3.2) is refused,
    and so is the mask of a model that computes attention by itself (Bloom, MPNet).

    Returns: "bigmodel". Calling it again changes nothing.

    Raises: ImportError if transformers is not installed or its version is not at least 5.4 and below 6.
    """
    _check_version()
    from transformers import AttentionInterface, AttentionMaskInterface

    from bigmodel_kernels.integrations.transformers_masks import mask_for_attention

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, mask_for_attention)
    return NAME


def _check_version() -> None:
    expected = f"expected at least {'.'.join(map(str, OLDEST))} and below {BEFORE[0]}"
    try:
        found = importlib.import_module("transformers").__version__
    except ImportError as error:
        raise ImportError(
            f"[transformers] transformers cannot be imported ({error}): {expected}; "
            "pip install 'bigmodel_kernels[transformers]'"
        ) from error
    version = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
    if not OLDEST <= version < BEFORE:
        raise ImportError(f"[transformers] transformers is version {found}: {expected}")


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers' interface.

    query [batch, heads, q_len, head_dim], key and value [batch, kv_heads, kv_len, ...]; attention_mask as
    `mask_for_attention` made it, or any boolean (True: may attend) or additive mask that broadcasts to the scores.
    Returns (output [batch, q_len, heads, value_dim], weights [batch, heads, q_len, kv_len] or None).

    Raises ValueError for what eager attention would compute and we do not, and what `bmk.attention` raises.
    """
    for name, meaning in _NOT_COMPUTED.items():
        if kwargs.get(name) is not None:
            raise ValueError(
                f"[transformers] {type(module).__name__} passes {name} ({meaning}), which attn_implementation={NAME!r} "
                "does not compute; expected a model without it, or attn_implementation='eager'"
            )
    query, key, value = _one_batch(query, key, value)
    shared = {"scale": scaling, "softcap": softcap}
    if dropout > 0 and module.training:
        seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=query.device)
        shared |= {"dropout_p": dropout, "dropout_seed": seed}
    starts, key_starts = kwargs.get("cu_seq_lens_q"), kwargs.get("cu_seq_lens_k")
    wants_weights = _wants_weights(kwargs)
    if position_bias is None and not wants_weights:
        packed = _packed(module, query, key, attention_mask, is_causal, starts, key_starts)
        if packed is not None:
            return _attention_of_packed(query, key, value, *packed, sinks=s_aux, **shared), None
    options = _mask_options(module, query, attention_mask, is_causal) | shared
    if starts is not None:
        _keep_within_sequences(options, query, key, starts, key_starts)
    if position_bias is not None:
        options["mask"] = _biased(position_bias, options["mask"])
    mask = options["mask"]
    if mask is not None and mask.dtype not in (torch.bool, torch.float32):
        options["mask"] = mask.to(query.dtype)
    if not wants_weights:
        output = functional.attention(query, key, value, sinks=s_aux, **options)
        return output.transpose(1, 2).contiguous(), None
    output, lse = functional.attention(query, key, value, sinks=s_aux, return_lse=True, **options)
    return output.transpose(1, 2).contiguous(), functional.attention_weights(query, key, lse, **options)


def _wants_weights(kwargs: dict) -> bool:
    """Most models pass output_attentions on. The others (GPT-2) are known by what transformers is about to collect,
    which cannot be asked while compiling."""
    if kwargs.get("output_attentions") or torch.compiler.is_compiling():
        return bool(kwargs.get("output_attentions"))
    from transformers.utils.output_capturing import _active_collector

    return any(name.endswith("attentions") for name in _active_collector.get() or ())


def _one_batch(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Learned queries may have a batch of 1, which eager attention broadcasts."""
    batch = max(x.shape[0] for x in tensors)
    return tuple(x if x.shape[0] == batch else x.expand(batch, *x.shape[1:]) for x in tensors)


def _mask_options(module: torch.nn.Module, query: Tensor, mask: Tensor | None, is_causal: bool | None) -> dict:
    """`bmk.attention`'s mask, causal and window. No mask means what it means to transformers' "sdpa": causal from the
    first key on, if the module is a decoder's and there is more than one query."""
    if isinstance(mask, DeferredMask):
        return mask.options()
    if mask is not None:
        return {"mask": mask, "causal": False, "window": None}
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return {"mask": None, "causal": "top_left" if query.shape[2] > 1 and is_causal else False, "window": None}


def _packed(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool | None,
    starts: Tensor | None,
    key_starts: Tensor | None,
) -> tuple[Tensor, dict] | None:
    """Where packed sequences start among the tokens of the batch, and `bmk.attention_varlen`'s causal and window, where
    it needs no mask: they attend to themselves, and were told by their positions, by cu_seq_lens, or alike by both."""
    if torch.compiler.is_compiling() or query.shape[2] != key.shape[2]:
        return None
    by_mask = mask.packed() if isinstance(mask, DeferredMask) and mask.shape[0] == query.shape[0] else None
    if starts is None:
        return by_mask
    if query.shape[0] != 1 or starts.device != query.device:
        return None
    # They may leave padding at the end to nobody.
    if int(starts[-1]) != query.shape[2] or (key_starts is not None and not torch.equal(starts, key_starts)):
        return None
    if by_mask is not None:
        return by_mask if torch.equal(by_mask[0], starts.to(by_mask[0].dtype)) else None
    options = _mask_options(module, query, mask, is_causal)
    return (starts, options) if options.pop("mask") is None else None


def _attention_of_packed(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, options: dict, **shared) -> Tensor:
    tokens = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    output = functional.attention_varlen(*tokens, starts, starts, **options, **shared)
    return output.unflatten(0, (query.shape[0], query.shape[2])).contiguous()


def _keep_within_sequences(
    options: dict, query: Tensor, key: Tensor, starts: Tensor, key_starts: Tensor | None
) -> None:
    """Sequences packed in one row, [0, first length, sum of the first two lengths, ...]: each sees itself only."""
    numbers = []
    for x, bounds in ((query, starts), (key, starts if key_starts is None else key_starts)):
        positions = torch.arange(x.shape[2], device=x.device)
        numbers.append(torch.bucketize(positions, bounds[1:].to(x.device), right=True))
    same = numbers[0][:, None] == numbers[1][None, :]
    mask = options["mask"]
    if mask is None:
        options["mask"] = same
    elif mask.dtype == torch.bool:
        options["mask"] = mask & same
    else:
        options["mask"] = mask.masked_fill(~same, -torch.inf)


def _biased(bias: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return bias
    return torch.where(mask, bias, -torch.inf) if mask.dtype == torch.bool else bias + mask
