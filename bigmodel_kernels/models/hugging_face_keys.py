"""Hugging Face's GPT-2 and Llama as CausalLM: the configuration, and which weight is which.

GPT-2 keeps linear weights [in, out], so they are transposed (t):

    transformer.wte.weight                      embedding.weight (and the head's, tied)
    transformer.wpe.weight                      position.weight
    transformer.h.{i}.ln_1, ln_2                layers.{i}.norm1, norm2
    transformer.h.{i}.attn.c_attn (t), c_proj (t)   layers.{i}.attention.qkv, out
    transformer.h.{i}.mlp.c_fc (t), c_proj (t)      layers.{i}.feed_forward.linear1, linear2
    transformer.ln_f                            norm

Llama:

    model.embed_tokens.weight                   embedding.weight
    model.layers.{i}.input_layernorm, post_attention_layernorm      layers.{i}.norm1, norm2
    model.layers.{i}.self_attn.q_proj, k_proj, v_proj (one below the other)     layers.{i}.attention.qkv
    model.layers.{i}.self_attn.o_proj           layers.{i}.attention.out
    model.layers.{i}.mlp.gate_proj, up_proj, down_proj  layers.{i}.feed_forward.gate_proj, linear1, linear2
    model.norm                                  norm
    lm_head.weight                              head.weight (where it is not tied, GPT-2's too)

Biases that only part of a Llama's linear layers have (attention_bias, mlp_bias) are zeros in the others.

The first word, "transformer" or "model", may be missing, as it is from the names of GPT2Model and LlamaModel, and of
GPT-2's own file on the Hub.
"""

import torch
from torch import Tensor

from bigmodel_kernels.models.causal_lm import CausalLMConfig
from bigmodel_kernels.nn import RotaryScaling

_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}

_GPT2 = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "mlp.c_fc": "feed_forward.linear1",
    "mlp.c_proj": "feed_forward.linear2",
}
_LLAMA = {
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
    "self_attn.o_proj": "attention.out",
    "mlp.gate_proj": "feed_forward.gate_proj",
    "mlp.up_proj": "feed_forward.linear1",
    "mlp.down_proj": "feed_forward.linear2",
}


def config_of(config) -> CausalLMConfig:
    """A transformers GPT2Config's or LlamaConfig's counterpart. Raises ValueError for any other, and for what CausalLM
    does not compute: other scores than those of GPT-2, other rotary frequencies than those of RotaryScaling."""
    if config.model_type == "gpt2":
        if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
            raise ValueError(
                "[CausalLM] the GPT-2 has scale_attn_weights off or scale_attn_by_inverse_layer_idx on: "
                "expected neither"
            )
        return CausalLMConfig.gpt(
            vocabulary=config.vocab_size,
            width=config.n_embd,
            layers=config.n_layer,
            heads=config.n_head,
            hidden=config.n_inner,
            length=config.n_positions,
            eps=config.layer_norm_epsilon,
            activation=_activation(config.activation_function),
            tied=config.tie_word_embeddings,
        )
    if config.model_type != "llama":
        raise ValueError(f"[CausalLM] the model's type is {config.model_type!r}: expected 'gpt2' or 'llama'")
    theta, scaling = _rotary(config)
    return CausalLMConfig.llama(
        vocabulary=config.vocab_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None),
        hidden=config.intermediate_size,
        length=config.max_position_embeddings,
        theta=theta,
        scaling=scaling,
        eps=config.rms_norm_eps,
        activation=_activation(config.hidden_act),
        bias=config.attention_bias or config.mlp_bias,
        tied=config.tie_word_embeddings,
    )


def converted(config, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of GPT2LMHeadModel or LlamaForCausalLM under CausalLM's names. Raises ValueError for a weight that
    it does not know, and for one that is missing."""
    first = "transformer." if config.model_type == "gpt2" else "model."
    names = {
        name if name.startswith((first, "lm_head.")) else first + name: tensor for name, tensor in state_dict.items()
    }
    if config.model_type == "gpt2":
        return _from_gpt2(names, config)
    return _from_llama(names, config)


def _from_gpt2(names: dict[str, Tensor], config) -> dict[str, Tensor]:
    result = {
        "embedding.weight": _take(names, "transformer.wte.weight"),
        "position.weight": _take(names, "transformer.wpe.weight"),
        "norm.weight": _take(names, "transformer.ln_f.weight"),
        "norm.bias": _take(names, "transformer.ln_f.bias"),
    }
    _take_head(names, config, result)
    for name, tensor in names.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")):  # the causal mask of older versions
            continue
        layer, part, kind = _parts(name, "transformer.h.")
        if part not in _GPT2:
            raise ValueError(f"[CausalLM] {name} is no weight of a GPT-2 that is known here")
        transposed = kind == "weight" and not part.startswith("ln_")
        result[f"layers.{layer}.{_GPT2[part]}.{kind}"] = tensor.t().contiguous() if transposed else tensor
    return result


def _from_llama(names: dict[str, Tensor], config) -> dict[str, Tensor]:
    result = {
        "embedding.weight": _take(names, "model.embed_tokens.weight"),
        "norm.weight": _take(names, "model.norm.weight"),
    }
    _take_head(names, config, result)
    for layer in range(config.num_hidden_layers):
        for kind in ("weight", "bias") if config.attention_bias else ("weight",):
            each = [_take(names, f"model.layers.{layer}.self_attn.{name}_proj.{kind}") for name in "qkv"]
            result[f"layers.{layer}.attention.qkv.{kind}"] = torch.cat(each)
    for name, tensor in names.items():
        if name.endswith("rotary_emb.inv_freq"):  # a buffer of older versions
            continue
        layer, part, kind = _parts(name, "model.layers.")
        if part not in _LLAMA:
            raise ValueError(f"[CausalLM] {name} is no weight of a Llama that is known here")
        result[f"layers.{layer}.{_LLAMA[part]}.{kind}"] = tensor
    if config.attention_bias or config.mlp_bias:
        _fill_up_biases(result)
    return result


def _fill_up_biases(result: dict[str, Tensor]) -> None:
    for name, weight in list(result.items()):
        if name.endswith(".weight") and (".attention." in name or ".feed_forward." in name):
            result.setdefault(name.removesuffix("weight") + "bias", weight.new_zeros(weight.size(0)))


def _take_head(names: dict[str, Tensor], config, result: dict[str, Tensor]) -> None:
    if not config.tie_word_embeddings:
        result["head.weight"] = _take(names, "lm_head.weight")
    names.pop("lm_head.weight", None)  # the embedding's


def _take(names: dict[str, Tensor], name: str) -> Tensor:
    if name not in names:
        raise ValueError(f"[CausalLM] {name} is missing: expected the state_dict of the whole model")
    return names.pop(name)


def _parts(name: str, prefix: str) -> tuple[str, str, str]:
    """prefix + "3.attn.c_attn.weight" to ("3", "attn.c_attn", "weight")."""
    layer, _, rest = name.removeprefix(prefix).partition(".")
    part, _, kind = rest.rpartition(".")
    return layer, part, kind


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise ValueError(f"[CausalLM] the activation is {name!r}: expected one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _rotary(config) -> tuple[float, RotaryScaling | None]:
    """The rotary base and scaling, under either of the names that transformers has had for them."""
    options = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    theta = float(options.get("rope_theta", getattr(config, "rope_theta", 10000.0)))
    kind = options.get("rope_type", options.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RotaryScaling(options["factor"])
    if kind == "llama3":
        return theta, RotaryScaling(
            options["factor"],
            options["original_max_position_embeddings"],
            low=options["low_freq_factor"],
            high=options["high_freq_factor"],
        )
    raise ValueError(f"[CausalLM] the rotary frequencies are scaled ({kind}): expected default, linear or llama3")
