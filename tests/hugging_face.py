"""Small random Hugging Face models of every kind of attention, their inputs, and what is tested of each."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import transformers
from torch.overrides import TorchFunctionMode

from bigmodel_kernels.testing.tolerance import FORWARD, GRADIENT, assert_as_exact

VOCABULARY, BATCH, LENGTH, WINDOW = 64, 3, 12, 4
PADDED = (0, 3, 5)  # tokens of padding in each row of a batch

# Weights ten times as large as usual, so that attention is far from uniform and a wrong mask shows.
_SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
_ENCODER = _SIZES | {"hidden_size": 32, "intermediate_size": 48}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
_DECODER = _ENCODER | _TOKENS | {"vocab_size": VOCABULARY, "num_key_value_heads": 2, "head_dim": 8}
_LAYERS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}


# What is tested of the families. docs/hugging-face.md has it as a table, with why a family lacks what it lacks.
ASPECTS = {
    "fp32": "outputs and gradients in fp32",
    "bf16": "outputs and gradients in bf16",
    "left": "outputs and gradients of a batch padded on the left",
    "right": "outputs and gradients of a batch padded on the right",
    "cu_seq_lens": "outputs and gradients of sequences packed in one row, told by `cu_seq_lens_q` and `cu_seq_lens_k`",
    "positions": "outputs and gradients of sequences packed in one row, told by `position_ids` alone",
    "dynamic": "greedily generated tokens with a dynamic cache",
    "static": "greedily generated tokens with a static cache",
    "compiled": "greedily generated tokens with a static cache and compiled steps, none of them compiled again",
    "torch.compile": "outputs and gradients of the whole model compiled as one graph",
    "weights": "the attention weights of `output_attentions=True`",
    "layers": "outputs and gradients after `replace_modules`, and its report",
}
_GENERATES_NOTHING = {"dynamic": "it has no cache", "static": "it has no cache", "compiled": "it has no cache"}
_LOOKS_AT_NO_POSITIONS = {
    "positions": "transformers makes its masks without looking at them, so eager attention keeps no sequences apart"
}
_COMPILES_STEPS = {"torch.compile": "only its steps of generation are tested compiled"}


@dataclass(frozen=True)
class Family:
    """kind: "encoder", "decoder", "image", "speech" or "text to text"; lacks: which ASPECTS are not tested, and why."""

    kind: str
    model: str
    config: str
    options: dict
    lacks: dict[str, str] = field(default_factory=dict)

    def make(self, attention: str = "eager") -> transformers.PreTrainedModel:
        """The model, in evaluation mode, with the same weights each time."""
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.options, attn_implementation=attention)
        return getattr(transformers, self.model)(config).eval()


FAMILIES = {
    "bert": Family(
        "encoder",
        "BertForMaskedLM",
        "BertConfig",
        _ENCODER | {"vocab_size": VOCABULARY},
        _GENERATES_NOTHING | _LOOKS_AT_NO_POSITIONS,
    ),
    "gpt2": Family(
        "decoder",
        "GPT2LMHeadModel",
        "GPT2Config",
        _TOKENS
        | {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        | {"initializer_range": 0.3},
        _COMPILES_STEPS,
    ),
    "llama": Family("decoder", "LlamaForCausalLM", "LlamaConfig", _DECODER),
    "qwen3": Family("decoder", "Qwen3ForCausalLM", "Qwen3Config", _DECODER, _COMPILES_STEPS),
    "mistral": Family(
        "decoder", "MistralForCausalLM", "MistralConfig", _DECODER | {"sliding_window": WINDOW}, _COMPILES_STEPS
    ),
    "gemma2": Family(
        "decoder",
        "Gemma2ForCausalLM",
        "Gemma2Config",
        _DECODER | _LAYERS | {"attn_logit_softcapping": 2.0},
        _COMPILES_STEPS,
    ),
    "gemma3": Family("decoder", "Gemma3ForCausalLM", "Gemma3TextConfig", _DECODER | _LAYERS, _COMPILES_STEPS),
    # As many experts as are used, so that rounding cannot choose others.
    "gpt_oss": Family(
        "decoder",
        "GptOssForCausalLM",
        "GptOssConfig",
        _DECODER | _LAYERS | {"num_local_experts": 2, "num_experts_per_tok": 2, "experts_implementation": "eager"},
        _COMPILES_STEPS | _LOOKS_AT_NO_POSITIONS,
    ),
    "vit": Family(
        "image",
        "ViTForImageClassification",
        "ViTConfig",
        _ENCODER | {"image_size": 16, "patch_size": 4},
        _GENERATES_NOTHING
        | dict.fromkeys(
            ("left", "right", "cu_seq_lens", "positions"), "its images have no padding, and each is a row of its own"
        ),
    ),
    "whisper": Family(
        "speech",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        _TOKENS
        | {"vocab_size": VOCABULARY, "num_mel_bins": 8, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
        | {"max_source_positions": 10, "max_target_positions": 32, "init_std": 0.3, "decoder_start_token_id": 2}
        | {"suppress_tokens": None, "begin_suppress_tokens": None},
        {"cu_seq_lens": "transformers hands them to its encoder, too, whose recording is not packed"},
    ),
    "t5": Family(
        "text to text",
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        | {"pad_token_id": 0, "eos_token_id": None, "decoder_start_token_id": 0},
        {"positions": "it takes none; what it knows of places is how far a key is from its query"},
    ),
}


def of_kind(*kinds: str) -> list[str]:
    return [name for name, family in FAMILIES.items() if family.kind in kinds]


# The aspects that tests are parametrized by.
tested: set[str] = set()


def having(aspect: str) -> list[str]:
    return [name for name, family in FAMILIES.items() if aspect not in family.lacks]


def for_families_with(aspect: str) -> pytest.MarkDecorator:
    """Parametrizes a test of an aspect by the names of the families that do not lack it."""
    tested.add(aspect)
    return pytest.mark.parametrize("name", having(aspect))


def table() -> str:
    """What is tested, in Markdown: a row for each aspect, a column for each family, and a note for what is lacking."""
    found = (family.lacks.get(aspect) for aspect in ASPECTS for family in FAMILIES.values())
    reasons = list(dict.fromkeys(why for why in found if why is not None))
    lines = ["| | " + " | ".join(FAMILIES) + " |", "|---|" + ":-:|" * len(FAMILIES)]
    for aspect, meaning in ASPECTS.items():
        lacks = [family.lacks.get(aspect) for family in FAMILIES.values()]
        cells = ["yes" if why is None else f"({1 + reasons.index(why)})" for why in lacks]
        lines.append(f"| {meaning} | " + " | ".join(cells) + " |")
    notes = [f"{1 + index}. Not tested: {why}." for index, why in enumerate(reasons)]
    return "\n".join([*lines, "", *notes, ""])


def padding(side: str) -> torch.Tensor:
    """[BATCH, LENGTH]: 0 where a row is padded, on the left or on the right."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    for row, count in enumerate(PADDED):
        mask[row, : count if side == "left" else 0] = 0
        mask[row, LENGTH - count if side == "right" else LENGTH :] = 0
    return mask


def inputs(name: str, side: str | None = "left") -> dict[str, torch.Tensor]:
    """What the model of a family takes, padded on a side where it can be."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=generator)
    kind = FAMILIES[name].kind
    if kind == "image":
        return {"pixel_values": torch.randn(BATCH, 3, 16, 16, generator=generator)}
    if kind == "speech":
        features = torch.randn(BATCH, 8, 20, generator=generator)
        return {"input_features": features, "decoder_input_ids": tokens[:, :7]}
    given = {"input_ids": tokens} | ({} if side is None else {"attention_mask": padding(side)})
    return given | ({"decoder_input_ids": tokens[:, :7]} if kind == "text to text" else {})


def in_dtype(given: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x for name, x in given.items()}


def logits(model: Callable, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of all tokens that are no padding."""
    result = model(**given).logits
    real = given.get("decoder_attention_mask" if "decoder_input_ids" in given else "attention_mask")
    padded = torch.is_tensor(real) and real.shape == result.shape[:2]
    return result[real.bool()] if padded else result


class InFloat64(TorchFunctionMode):
    """What models compute in float32 whatever their dtype is (norms, softmax) is computed in float64: for the truth."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = [torch.float64 if each is torch.float32 else each for each in args]
        kwargs = {name: torch.float64 if each is torch.float32 else each for name, each in (kwargs or {}).items()}
        return func(*args, **kwargs)


def run(model: Callable, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradients of a fixed combination of them, by parameter."""
    result = logits(model, given)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(2)).to(result.dtype)
    (result * weights).sum().backward()
    return result.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_as_eager(
    model: transformers.PreTrainedModel,
    ours: Callable,
    given: dict[str, torch.Tensor],
    given_to_ours: dict[str, torch.Tensor] | None = None,
) -> None:
    """Holds `ours` to the tolerance rule, against `model`, which attends eagerly, and against it in float64.
    given_to_ours: the same as `given`, told otherwise."""
    dtype = model.dtype
    given = in_dtype(given, dtype)
    with InFloat64():
        truth, truths = run(copy.deepcopy(model).double(), in_dtype(given, torch.float64))
    expected, gradients = run(copy.deepcopy(model), given)
    actual, our_gradients = run(ours, given if given_to_ours is None else in_dtype(given_to_ours, dtype))
    assert_as_exact("logits", actual, expected, truth, FORWARD, dtype)
    assert our_gradients.keys() == gradients.keys() == truths.keys()
    for name, gradient in our_gradients.items():
        # What is 0 but for rounding (the gradient of a key's bias) has no size to be held to.
        if truths[name].abs().max() > 1e-9 * truth.abs().max():
            assert_as_exact(name, gradient, gradients[name], truths[name], GRADIENT, dtype)


PACKED_LENGTHS = (5, 1, 6)
PACKED_POSITIONS = torch.cat([torch.arange(length) for length in PACKED_LENGTHS])[None]


def packed(name: str) -> tuple[dict, dict]:
    """Sequences of PACKED_LENGTHS tokens in one row, as the model of a family takes them: told by where each starts,
    and by masks and positions."""
    tokens, family = inputs(name)["input_ids"][:1], FAMILIES[name]
    starts = torch.tensor([0, *PACKED_LENGTHS]).cumsum(0, dtype=torch.int32)
    by_starts = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts.clone()}
    by_starts |= dict.fromkeys(("max_length_q", "max_length_k"), max(PACKED_LENGTHS))
    masks = _masks_of_packed()
    by_masks = {"attention_mask": masks["full_attention"]}
    if "layer_types" in family.options:
        by_masks["attention_mask"] = masks
    elif "sliding_window" in family.options:
        by_masks["attention_mask"] = masks["sliding_attention"]
    elif family.kind != "decoder":
        by_masks["attention_mask"] = masks["everything"]
    given = {"input_ids": tokens}
    if name == "t5":  # answers as long as their questions
        given["decoder_input_ids"] = tokens
        by_masks["decoder_attention_mask"] = masks["full_attention"]
    else:
        by_masks["position_ids"] = PACKED_POSITIONS
    if name in ("bert", "gpt2"):  # learned positions are looked up
        by_starts["position_ids"] = PACKED_POSITIONS
    if name != "bert":
        given["use_cache"] = False
    return given | by_starts, given | by_masks


def _masks_of_packed() -> dict[str, torch.Tensor]:
    """Additive masks [1, 1, q_len, kv_len] by transformers' names of layers."""
    sequence = torch.arange(len(PACKED_LENGTHS)).repeat_interleave(torch.tensor(PACKED_LENGTHS))
    same = sequence[:, None] == sequence
    back = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    seen = {"everything": same, "full_attention": same & (back >= 0)}
    seen["sliding_attention"] = seen["full_attention"] & (back < WINDOW)
    return {name: torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~mask, -1e9) for name, mask in seen.items()}


if __name__ == "__main__":
    print(table(), end="")
