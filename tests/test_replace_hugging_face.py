"""bmk.replace_modules on Hugging Face models: their norms and feed-forward layers."""

import copy
import pickle
import re
from dataclasses import dataclass

import pytest
import torch
import transformers
from hugging_face import FAMILIES, InFloat64, assert_as_eager, for_families_with, inputs

import bigmodel_kernels as bmk
from bigmodel_kernels import functional, linear_choice
from bigmodel_kernels.ops import packed_weights
from bigmodel_kernels.testing.tolerance import FORWARD, assert_as_exact


@dataclass(frozen=True)
class Parts:
    """What a report says of a family's model, by names in which {a,b} stands for a and for b. swapped: name -> class;
    inside: name -> the layer whose op computes it; linear: linear layers of their own, which are swapped where that is
    known to pay; others: class -> how many modules with parameters have no counterpart."""

    swapped: dict[str, str]
    inside: dict[str, str]
    linear: tuple[str, ...]
    others: dict[str, int]


def names(pattern: str) -> list[str]:
    before, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    choices, _, after = rest.partition("}")
    return [name for each in choices.split(",") for name in names(before + each + after)]


def expanded(patterns: dict[str, str]) -> dict[str, str]:
    return {name: meaning for pattern, meaning in patterns.items() for name in names(pattern)}


def decoder(prefix: str, norms: str = "input,post_attention", norms_of_heads: bool = False) -> Parts:
    """Llama and its kin, by the prefix of their classes."""
    layer, norm = "model.layers.{0,1}.", f"{prefix}RMSNorm"
    heads = {layer + "self_attn.{q,k}_norm": norm} if norms_of_heads else {}
    embedding = f"{prefix}TextScaledWordEmbedding" if prefix.startswith("Gemma") else "Embedding"
    return Parts(
        heads | {layer + f"{{{norms}}}_layernorm": norm, "model.norm": norm, layer + "mlp": f"{prefix}MLP"},
        {f"model.layers.{i}.mlp.{{gate,up,down}}_proj": f"model.layers.{i}.mlp" for i in (0, 1)},
        (layer + "self_attn.{q,k,v,o}_proj", "lm_head"),
        {embedding: 1},
    )


_AROUND = "input,post_attention,pre_feedforward,post_feedforward"
PARTS = {
    "bert": Parts(
        {
            "{bert.embeddings,cls.predictions.transform}.LayerNorm": "LayerNorm",
            "bert.encoder.layer.{0,1}.{attention.output,output}.LayerNorm": "LayerNorm",
            "bert.encoder.layer.{0,1}.attention.output": "BertSelfOutput",
            "bert.encoder.layer.{0,1}.intermediate": "BertIntermediate",
            "bert.encoder.layer.{0,1}.output": "BertOutput",
        },
        {f"bert.encoder.layer.{i}.intermediate.dense": f"bert.encoder.layer.{i}.intermediate" for i in (0, 1)},
        (
            "bert.encoder.layer.{0,1}.{attention.self.query,attention.self.key,attention.self.value}",
            "bert.encoder.layer.{0,1}.{attention.output,output}.dense",
            "cls.predictions.{transform.dense,decoder}",
        ),
        {"Embedding": 3, "BertLMPredictionHead": 1},
    ),
    "gpt2": Parts(
        {
            "transformer.h.{0,1}.{ln_1,ln_2}": "LayerNorm",
            "transformer.ln_f": "LayerNorm",
            "transformer.h.{0,1}.mlp": "GPT2MLP",
        },
        {f"transformer.h.{i}.mlp.{{c_fc,c_proj}}": f"transformer.h.{i}.mlp" for i in (0, 1)},
        ("transformer.h.{0,1}.attn.{c_attn,c_proj}", "lm_head"),
        {"Embedding": 2},
    ),
    "llama": decoder("Llama"),
    "qwen3": decoder("Qwen3", norms_of_heads=True),
    "mistral": decoder("Mistral"),
    "gemma2": decoder("Gemma2", _AROUND),
    "gemma3": decoder("Gemma3", _AROUND, norms_of_heads=True),
    "gpt_oss": Parts(
        {
            "model.layers.{0,1}.{input,post_attention}_layernorm": "GptOssRMSNorm",
            "model.norm": "GptOssRMSNorm",
        },
        {},
        ("model.layers.{0,1}.self_attn.{q,k,v,o}_proj", "lm_head"),
        {"Embedding": 1, "GptOssAttention": 2, "GptOssExperts": 2, "GptOssTopKRouter": 2},
    ),
    "vit": Parts(
        {
            "vit.layers.{0,1}.layernorm_{before,after}": "LayerNorm",
            "vit.layernorm": "LayerNorm",
            "vit.layers.{0,1}.mlp": "ViTMLP",
        },
        {f"vit.layers.{i}.mlp.{{fc1,fc2}}": f"vit.layers.{i}.mlp" for i in (0, 1)},
        ("vit.layers.{0,1}.attention.{q,k,v,o}_proj", "classifier"),
        {"Conv2d": 1, "ViTEmbeddings": 1},
    ),
    "whisper": Parts(
        {
            "model.{encoder,decoder}.layers.{0,1}.{self_attn,final}_layer_norm": "LayerNorm",
            "model.decoder.layers.{0,1}.encoder_attn_layer_norm": "LayerNorm",
            "model.{encoder,decoder}.layer_norm": "LayerNorm",
            "model.encoder.layers.{0,1}": "WhisperEncoderLayer",
            "model.decoder.layers.{0,1}": "WhisperDecoderLayer",
        },
        {f"{layer}.fc1": layer for layer in names("model.{encoder,decoder}.layers.{0,1}")},
        (
            "model.{encoder,decoder}.layers.{0,1}.self_attn.{q,k,v,out}_proj",
            "model.decoder.layers.{0,1}.encoder_attn.{q,k,v,out}_proj",
            "model.{encoder,decoder}.layers.{0,1}.fc2",
            "proj_out",
        ),
        {"Conv1d": 2, "Embedding": 2, "WhisperPositionalEmbedding": 1},
    ),
    "t5": Parts(
        {
            "encoder.block.{0,1}.layer.{0,1}.layer_norm": "T5LayerNorm",
            "decoder.block.{0,1}.layer.{0,1,2}.layer_norm": "T5LayerNorm",
            "{encoder,decoder}.final_layer_norm": "T5LayerNorm",
            "encoder.block.{0,1}.layer.1.DenseReluDense": "T5DenseActDense",
            "decoder.block.{0,1}.layer.2.DenseReluDense": "T5DenseActDense",
        },
        {
            f"{layer}.DenseReluDense.{{wi,wo}}": f"{layer}.DenseReluDense"
            for layer in names("{encoder.block.0.layer.1,encoder.block.1.layer.1}")
            + names("{decoder.block.0.layer.2,decoder.block.1.layer.2}")
        },
        (
            "{encoder,decoder}.block.{0,1}.layer.0.SelfAttention.{q,k,v,o}",
            "decoder.block.{0,1}.layer.1.EncDecAttention.{q,k,v,o}",
            "lm_head",
        ),
        {"Embedding": 5},
    ),
}


def let_linear(monkeypatch, row):
    """Makes the calls of linear layers that a row of the table names ours, whatever this machine is."""
    monkeypatch.setattr(linear_choice, "row_for", lambda device, dtype, transposed=False: row)


def class_of(linear: str) -> str:
    return "Conv1D" if ".attn.c_" in linear else "Linear"


@pytest.mark.parametrize(
    "row", [None, linear_choice.Row("it is measured")], ids=["no linear layer", "every linear layer"]
)
@for_families_with("layers")
def test_swaps_and_computes_the_same(name, row, monkeypatch):
    """The report says what is swapped, what computes it, and what is left and why; outputs and gradients stay."""
    let_linear(monkeypatch, row)
    model, parts = FAMILIES[name].make(), PARTS[name]
    linear = [each for pattern in parts.linear for each in names(pattern)]
    theirs, parameters, keys = copy.deepcopy(model), dict(model.named_parameters()), model.state_dict().keys()
    report = bmk.replace_modules(model)
    swapped = expanded(parts.swapped)
    if row is None:
        assert report.left.keys() == set(linear) and not report.why
        for reason in set(report.left.values()):  # a weight stored transposed may have one of its own
            assert re.match("ours (has not been measured against torch's on|is not faster in)", reason)
            first, *more = [each for each, why in report.left.items() if why == reason]
            assert (
                f"{first} and {len(more)} more: {reason}" in str(report)
                if more
                else f"{first}: {reason}" in str(report)
            )
    else:
        swapped |= {each: class_of(each) for each in linear}
        assert not report.left and report.why == dict.fromkeys(linear, "it is measured")
    assert report.swapped == swapped and report.already == {}
    assert report.inside == expanded(parts.inside)
    assert report.no_counterpart == parts.others
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())
    assert model.state_dict().keys() == keys
    assert_as_eager(theirs, model, inputs(name))
    again = bmk.replace_modules(model)
    assert again.swapped == {} and again.already == report.swapped


LAYERS = {
    "llama norm": ("llama", "model.norm"),
    "gemma norm": ("gemma2", "model.norm"),
    "gpt-oss norm": ("gpt_oss", "model.norm"),
    "t5 norm": ("t5", "encoder.final_layer_norm"),
    "gated": ("llama", "model.layers.0.mlp"),
    "gated, gelu_tanh": ("gemma2", "model.layers.0.mlp"),
    "fc1, fc2": ("vit", "vit.layers.0.mlp"),
    "gpt2": ("gpt2", "transformer.h.0.mlp"),
}


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in LAYERS if "norm" in name])
def test_norms_keep_their_dtypes(name, dtype, weight_dtype):
    family, path = LAYERS[name]
    theirs = FAMILIES[family].make().get_submodule(path).to(weight_dtype)
    torch.nn.init.normal_(theirs.weight)
    ours = copy.deepcopy(theirs)
    assert bmk.replace_modules(ours).swapped.keys() == {"(model)"}
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(4)).to(dtype)
    rough = torch.bfloat16 if torch.bfloat16 in (dtype, weight_dtype) else torch.float32
    with InFloat64():
        truth = copy.deepcopy(theirs).double()(x.double())
    assert_as_exact(name, ours(x), theirs(x), truth, FORWARD, rough)


@pytest.mark.parametrize("name", [name for name in LAYERS if "norm" not in name])
def test_feed_forward_layers_are_one_op_until_someone_looks_inside(name, monkeypatch):
    family, path = LAYERS[name]
    layer = FAMILIES[family].make().get_submodule(path)
    x = torch.randn(9, 32)
    expected = layer(x)
    report = bmk.replace_modules(layer)
    assert "(model)" in report.swapped and set(report.inside.values()) == {"(model)"}
    fused, feed_forward = [], functional.feed_forward
    monkeypatch.setattr(
        functional, "feed_forward", lambda *args, **kwargs: fused.append(feed_forward(*args, **kwargs)) or fused[-1]
    )
    torch.testing.assert_close(layer(x), expected)
    assert len(fused) == 1
    seen = []
    linear = layer.get_submodule(next(iter(report.inside)))
    linear.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(layer(x), expected)
    assert len(fused) == 1 and len(seen) == 1


@pytest.mark.parametrize("name", [name for name in LAYERS if "norm" not in name])
def test_feed_forward_layers_under_autocast(name, monkeypatch):
    family, path = LAYERS[name]
    theirs = FAMILIES[family].make().get_submodule(path)
    ours, x = copy.deepcopy(theirs), torch.randn(9, 32, generator=torch.Generator().manual_seed(4))
    bmk.replace_modules(ours)
    fused, feed_forward = [], functional.feed_forward
    monkeypatch.setattr(
        functional, "feed_forward", lambda *args, **kwargs: fused.append(1) or feed_forward(*args, **kwargs)
    )
    with torch.no_grad():
        truth = copy.deepcopy(theirs).double()(x.double())
        for given in (x, x.bfloat16()):  # as it comes from a norm, or from another layer
            with torch.autocast("cpu", torch.bfloat16):
                actual, expected = ours(given), theirs(given)
            assert_as_exact(name, actual, expected, truth, FORWARD, torch.bfloat16)
    assert len(fused) == 2


ACTIVATED = {
    "bert": ("bert.encoder.layer.0.intermediate", ("dense", "intermediate_act_fn")),
    "whisper": ("model.encoder.layers.0", ("fc1", "activation_fn")),
}


@pytest.mark.parametrize("name", list(ACTIVATED))
def test_the_activation_is_in_the_products_epilogue_until_someone_looks_between(name, monkeypatch):
    path, parts = ACTIVATED[name]
    layer = FAMILIES[name].make().get_submodule(path)
    arguments = (torch.randn(2, 5, 32),) + ((None,) if name == "whisper" else ())
    expected = layer(*arguments)
    bmk.replace_modules(layer)
    activations, linear = [], functional.linear

    def spy(*args, activation=None, **kwargs):
        activations.append(activation)
        return linear(*args, activation=activation, **kwargs)

    monkeypatch.setattr(functional, "linear", spy)
    torch.testing.assert_close(layer(*arguments), expected)
    assert activations.count("gelu") == 1
    for part in parts:
        seen = []
        handle = layer.get_submodule(part).register_forward_hook(lambda *call, seen=seen: seen.append(call[-1]))
        torch.testing.assert_close(layer(*arguments), expected)
        assert len(seen) == 1 and activations.count("gelu") == 1
        assert (seen[0] < -0.2).any() == (part != parts[1]), "the linear layer's hook sees what is not yet activated"
        handle.remove()
    setattr(layer, parts[1], torch.nn.Identity())
    assert not torch.allclose(layer(*arguments), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gpt2s_weights_are_laid_out_once(mode):
    config = transformers.GPT2Config(n_embd=128, n_layer=1, n_head=2, vocab_size=64)
    layer = transformers.GPT2Model(config).eval().h[0].mlp
    bmk.replace_modules(layer)
    packed_weights.clear()
    with mode():
        for _ in range(3):
            layer(torch.randn(9, 128))
    assert packed_weights.packed_bytes() >= 2 * 4 * 128 * 512


def test_checkpointing_of_a_layer_whose_forward_runs_on_a_stand_in():
    given = inputs("whisper")
    gradients = []
    for checkpoints in (False, True):
        model = FAMILIES["whisper"].make().train()
        bmk.replace_modules(model)
        if checkpoints:
            model.gradient_checkpointing_enable()
        model(**given, use_cache=False).logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and "model.encoder.layers.0.fc1.weight" in gradients[0]
    assert all(torch.equal(gradients[0][name], gradient) for name, gradient in gradients[1].items())


@pytest.mark.parametrize("name", ["bert", "gpt2", "whisper"])
def test_compiles_whole(name, monkeypatch):
    let_linear(monkeypatch, linear_choice.Row("all"))
    model, given = FAMILIES[name].make("sdpa"), inputs(name)
    bmk.replace_modules(model)
    expected = model(**given, use_cache=False).logits if name != "bert" else model(**given).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    actual = compiled(**given, use_cache=False).logits if name != "bert" else compiled(**given).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_t5s_gated_layer_and_its_dropout():
    options = FAMILIES["t5"].options | {"feed_forward_proj": "gated-gelu", "dropout_rate": 0.5}
    torch.manual_seed(0)
    config = transformers.T5Config(**options)
    layer = transformers.T5ForConditionalGeneration(config).encoder.block[0].layer[-1].DenseReluDense
    x = torch.randn(5, 32)
    expected = layer.eval()(x)
    assert bmk.replace_modules(layer).swapped == {"(model)": "T5DenseGatedActDense"}
    torch.testing.assert_close(layer(x), expected)
    first, second = layer.train()(x), layer(x)
    assert not torch.allclose(first, expected) and not torch.allclose(first, second)


def test_copies_and_pickles():
    layer = FAMILIES["llama"].make().model.layers[0].mlp
    bmk.replace_modules(layer)
    x = torch.randn(5, 32)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(copied) is type(layer) and torch.equal(copied(x), layer(x))
        assert copied.up_proj.weight is not layer.up_proj.weight


def test_gpt2s_layer_drops_in_training_only():
    options = FAMILIES["gpt2"].options | {"resid_pdrop": 0.5}
    layer = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options)).transformer.h[0].mlp
    x = torch.randn(50, 32)
    expected = layer.eval()(x)
    bmk.replace_modules(layer)
    dropped = layer.train()(x) == 0
    assert 0.4 < dropped.float().mean() < 0.6
    torch.testing.assert_close(layer.eval()(x), expected)


class OfBert(transformers.models.bert.modeling_bert.BertIntermediate):
    def forward(self, hidden_states):
        return 2 * super().forward(hidden_states)


class OfWhisper(transformers.models.whisper.modeling_whisper.WhisperEncoderLayer):
    def forward(self, hidden_states, attention_mask=None):
        return self.fc2(self.activation_fn(self.fc1(hidden_states)) + self.fc1(hidden_states))


class Quietly(OfWhisper):
    def forward(self, hidden_states, attention_mask=None):
        return super().forward(hidden_states) + self.activation_fn(self.fc1(hidden_states)).mean()


def test_subclasses_of_new_layers_are_left():
    bert, whisper = FAMILIES["bert"].make(), FAMILIES["whisper"].make()
    bert.bert.encoder.layer[0].intermediate = OfBert(bert.config)
    whisper.model.encoder.layers[0] = OfWhisper(whisper.config)
    whisper.model.encoder.layers[1] = Quietly(whisper.config)
    left = bmk.replace_modules(whisper).left
    for index, kind in enumerate((OfWhisper, Quietly)):
        assert type(whisper.model.encoder.layers[index]) is kind
        assert "fc1 or activation_fn otherwise than once" in left[f"model.encoder.layers.{index}"]
    x = torch.randn(2, 5, 32)
    expected = bert.bert.encoder.layer[0].intermediate(x)
    assert "bert.encoder.layer.0.intermediate" not in bmk.replace_modules(bert).swapped
    torch.testing.assert_close(bert.bert.encoder.layer[0].intermediate(x), expected)


@pytest.mark.parametrize(
    ("name", "option", "paths"),
    [
        ("gpt2", "activation_function", ["transformer.h.0.mlp"]),
        ("bert", "hidden_act", ["bert.encoder.layer.0.intermediate"]),
        ("whisper", "activation_function", ["model.encoder.layers.0", "model.decoder.layers.0"]),
        ("vit", "hidden_act", ["vit.layers.0.mlp"]),
    ],
)
def test_an_activation_that_we_do_not_have_is_left(name, option, paths):
    family = FAMILIES[name]
    config = getattr(transformers, family.config)(**family.options | {option: "quick_gelu"})
    model = getattr(transformers, family.model)(config).eval()
    theirs = copy.deepcopy(model)
    left = bmk.replace_modules(model).left
    assert all("QuickGELU" in left[path] for path in paths)
    assert_as_eager(theirs, model, inputs(name))


def test_what_computes_something_else_is_left():
    class Shifted(type(FAMILIES["llama"].make().model.norm)):
        def forward(self, hidden_states):
            return super().forward(hidden_states) + 1

    options = FAMILIES["llama"].options | {"hidden_act": "quick_gelu"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options))
    model.model.norm = Shifted(32)
    model.model.layers[0].input_layernorm.forward = lambda x: x
    report = bmk.replace_modules(model)
    assert type(model.model.norm) is Shifted and report.no_counterpart["Shifted"] == 1
    assert "forward was replaced" in report.left["model.layers.0.input_layernorm"]
    assert "QuickGELU" in report.left["model.layers.1.mlp"]
