"""Small random Hugging Face models of every kind of attention, and their inputs."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Family:
    """kind: "encoder", "decoder", "image", "speech" or "text to text"."""

    kind: str
    model: str
    config: str
    options: dict

    def make(self, attention: str = "eager") -> transformers.PreTrainedModel:
        """The model, in evaluation mode, with the same weights each time."""
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.options, attn_implementation=attention)
        return getattr(transformers, self.model)(config).eval()


FAMILIES = {
    "bert": Family("encoder", "BertForMaskedLM", "BertConfig", _ENCODER | {"vocab_size": VOCABULARY}),
    "gpt2": Family(
        "decoder",
        "GPT2LMHeadModel",
        "GPT2Config",
        _TOKENS
        | {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        | {"initializer_range": 0.3},
    ),
    "llama": Family("decoder", "LlamaForCausalLM", "LlamaConfig", _DECODER),
    "qwen3": Family("decoder", "Qwen3ForCausalLM", "Qwen3Config", _DECODER),
    "mistral": Family("decoder", "MistralForCausalLM", "MistralConfig", _DECODER | {"sliding_window": WINDOW}),
    "gemma2": Family(
        "decoder", "Gemma2ForCausalLM", "Gemma2Config", _DECODER | _LAYERS | {"attn_logit_softcapping": 2.0}
    ),
    "gemma3": Family("decoder", "Gemma3ForCausalLM", "Gemma3TextConfig", _DECODER | _LAYERS),
    # As many experts as are used, so that rounding cannot choose others.
    "gpt_oss": Family(
        "decoder",
        "GptOssForCausalLM",
        "GptOssConfig",
        _DECODER | _LAYERS | {"num_local_experts": 2, "num_experts_per_tok": 2, "experts_implementation": "eager"},
    ),
    "vit": Family("image", "ViTForImageClassification", "ViTConfig", _ENCODER | {"image_size": 16, "patch_size": 4}),
    "whisper": Family(
        "speech",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        _TOKENS
        | {"vocab_size": VOCABULARY, "num_mel_bins": 8, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
        | {"max_source_positions": 10, "max_target_positions": 32, "init_std": 0.3, "decoder_start_token_id": 2}
        | {"suppress_tokens": None, "begin_suppress_tokens": None},
    ),
    "t5": Family(
        "text to text",
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        | {"pad_token_id": 0, "eos_token_id": None, "decoder_start_token_id": 0},
    ),
}


def of_kind(*kinds: str) -> list[str]:
    return [name for name, family in FAMILIES.items() if family.kind in kinds]


def padding(side: str) -> torch.Tensor:
    """[BATCH, LENGTH]: 0 where a row is padded, on the left or on the right."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    for row, count in enumerate(PADDED):
        mask[row, : count if side == "left" else 0] = 0
        mask[row, LENGTH - count if side == "right" else LENGTH :] = 0
    return mask


def inputs(name: str, side: str = "left") -> dict[str, torch.Tensor]:
    """What the model of a family takes, padded where it can be."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=generator)
    kind = FAMILIES[name].kind
    if kind == "image":
        return {"pixel_values": torch.randn(BATCH, 3, 16, 16, generator=generator)}
    if kind == "speech":
        features = torch.randn(BATCH, 8, 20, generator=generator)
        return {"input_features": features, "decoder_input_ids": tokens[:, :7]}
    given = {"input_ids": tokens, "attention_mask": padding(side)}
    return given | ({"decoder_input_ids": tokens[:, :7]} if kind == "text to text" else {})


def in_dtype(given: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x for name, x in given.items()}


def logits(model: Callable, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of all tokens that are no padding."""
    result = model(**given).logits
    real = given.get("attention_mask")
    return result[real.bool()] if real is not None and real.shape == result.shape[:2] else result


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


def assert_as_eager(model: transformers.PreTrainedModel, ours: Callable, given: dict[str, torch.Tensor]) -> None:
    """Holds `ours` to the tolerance rule, against `model`, which attends eagerly, and against it in float64."""
    dtype = model.dtype
    given = in_dtype(given, dtype)
    with InFloat64():
        truth, truths = run(copy.deepcopy(model).double(), in_dtype(given, torch.float64))
    expected, gradients = run(copy.deepcopy(model), given)
    actual, our_gradients = run(ours, given)
    assert_as_exact("logits", actual, expected, truth, FORWARD, dtype)
    assert our_gradients.keys() == gradients.keys() == truths.keys()
    for name, gradient in our_gradients.items():
        # What is 0 but for rounding (the gradient of a key's bias) has no size to be held to.
        if truths[name].abs().max() > 1e-9 * truth.abs().max():
            assert_as_exact(name, gradient, gradients[name], truths[name], GRADIENT, dtype)
