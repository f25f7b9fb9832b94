"""bmk.replace_modules on Hugging Face models: their norms and feed-forward layers."""

import copy
import pickle

import pytest
import torch
import transformers
from hugging_face import FAMILIES, InFloat64, assert_as_eager, inputs

import bigmodel_kernels as bmk
from bigmodel_kernels import functional
from bigmodel_kernels.testing.tolerance import FORWARD, assert_as_exact

# What is swapped in each family, by class.
SWAPPED = {
    "bert": {"LayerNorm"},
    "gpt2": {"LayerNorm"},
    "llama": {"LlamaRMSNorm", "LlamaMLP"},
    "qwen3": {"Qwen3RMSNorm", "Qwen3MLP"},
    "mistral": {"MistralRMSNorm", "MistralMLP"},
    "gemma2": {"Gemma2RMSNorm", "Gemma2MLP"},
    "gemma3": {"Gemma3RMSNorm", "Gemma3MLP"},
    "gpt_oss": {"GptOssRMSNorm"},
    "vit": {"LayerNorm", "ViTMLP"},
    "whisper": {"LayerNorm"},
    "t5": {"T5LayerNorm", "T5DenseActDense"},
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_swaps_and_computes_the_same(name):
    model = FAMILIES[name].make()
    theirs, parameters = copy.deepcopy(model), dict(model.named_parameters())
    report = bmk.replace_modules(model)
    assert set(report.swapped.values()) == SWAPPED[name]
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())
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
    x = torch.randn(5, 32)
    expected = layer(x)
    assert bmk.replace_modules(layer).swapped.keys() == {"(model)"}
    fused, feed_forward = [], functional.feed_forward
    monkeypatch.setattr(
        functional, "feed_forward", lambda *args, **kwargs: fused.append(feed_forward(*args, **kwargs)) or fused[-1]
    )
    torch.testing.assert_close(layer(x), expected)
    assert len(fused) == 1
    seen = []
    linear = next(module for module in layer.modules() if type(module) is torch.nn.Linear)
    linear.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(layer(x), expected)
    assert len(fused) == 1 and len(seen) == 1


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
