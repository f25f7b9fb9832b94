"""attn_implementation="bigmodel" against "eager", on small random models of every kind of attention."""

import copy
import subprocess
import sys

import pytest
import torch
import transformers
from hugging_face import (
    BATCH,
    FAMILIES,
    LENGTH,
    WINDOW,
    assert_as_eager,
    inputs,
    logits,
    of_kind,
    padding,
    run,
)
from transformers import masking_utils

from bigmodel_kernels import functional
from bigmodel_kernels.integrations import transformers as integration
from bigmodel_kernels.integrations.deferred_mask import DeferredMask

SIDES = [
    (name, side)
    for name, family in FAMILIES.items()
    for side in (("left", "right") if family.kind in ("encoder", "decoder", "text to text") else ("left",))
]


@pytest.fixture(autouse=True)
def registered():
    assert integration.register() == integration.register() == "bigmodel"


@pytest.fixture
def calls(monkeypatch):
    """The options of each call of bmk.attention: an empty list says that the model went past us."""
    seen, attention = [], functional.attention

    def spy(query, key, value, **options):
        seen.append(options)
        return attention(query, key, value, **options)

    monkeypatch.setattr(functional, "attention", spy)
    return seen


def ours_of(model):
    copied = copy.deepcopy(model)
    copied.set_attn_implementation("bigmodel")
    return copied


@pytest.mark.parametrize("name, side", SIDES)
def test_outputs_and_gradients(name, side, calls):
    model = FAMILIES[name].make()
    assert_as_eager(model, ours_of(model), inputs(name, side))
    assert calls


@pytest.mark.parametrize("name", of_kind("speech", "text to text"))
def test_a_padded_decoder(name, calls):
    given = inputs(name) | {"decoder_attention_mask": padding("right")[:, -7:]}
    model = FAMILIES[name].make()
    assert_as_eager(model, ours_of(model), given)
    assert any(options["mask"] is not None for options in calls)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_outputs_and_gradients_in_bfloat16(name, calls):
    model = FAMILIES[name].make().to(torch.bfloat16)
    assert_as_eager(model, ours_of(model), inputs(name))
    assert calls


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", of_kind("decoder", "speech", "text to text"))
def test_generates_the_same_tokens(name, cache, calls):
    given = {key: x for key, x in inputs(name).items() if key != "decoder_input_ids"}
    options = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": None if cache == "dynamic" else cache}
    model = FAMILIES[name].make()
    expected = model.generate(**given, **options)
    assert not calls
    assert torch.equal(ours_of(model).generate(**given, **options), expected)
    assert calls


@pytest.mark.parametrize("name", of_kind("decoder"))
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_prompt_in_pieces_is_the_prompt(name, cache, calls):
    """Several queries after keys that are in the cache already."""
    model = FAMILIES[name].make("bigmodel")
    given = inputs(name)
    whole = model(**given).logits
    if cache == "dynamic":
        past = transformers.DynamicCache(config=model.config)
    else:
        past = transformers.StaticCache(config=model.config, max_cache_len=LENGTH + 4)
    pieces = []
    for start, end in ((0, 5), (5, LENGTH)):
        piece = {"input_ids": given["input_ids"][:, start:end], "attention_mask": given["attention_mask"][:, :end]}
        piece["position_ids"] = torch.arange(start, end)[None].expand(BATCH, -1)
        pieces.append(model(**piece, past_key_values=past).logits)
    real = given["attention_mask"].bool()
    torch.testing.assert_close(torch.cat(pieces, dim=1)[real], whole[real], rtol=1e-4, atol=1e-4)


# BERT and gpt-oss do not take position ids for packing: under eager attention too the sequences see each other.
PACKED_BY_POSITIONS = [name for name in of_kind("decoder") if name != "gpt_oss"]
PACKINGS = [(name, "cu_seq_lens_q") for name in of_kind("encoder", "decoder")]
PACKINGS += [(name, "position_ids") for name in PACKED_BY_POSITIONS]
PACKED_LENGTHS = (5, 1, 6)
PACKED_POSITIONS = torch.cat([torch.arange(length) for length in PACKED_LENGTHS])[None]


@pytest.mark.parametrize(("name", "how"), PACKINGS)
def test_packed_sequences_do_not_see_each_other(name, how, calls):
    model = FAMILIES[name].make("bigmodel")
    tokens = inputs(name)["input_ids"][:1]
    # Learned positions are looked up, so they have to be told with cu_seq_lens_q too.
    learned = name in ("bert", "gpt2")
    packing = {"position_ids": PACKED_POSITIONS if learned or how == "position_ids" else None}
    if how == "cu_seq_lens_q":
        packing[how] = torch.tensor([0, 5, 6, 12], dtype=torch.int32)
    options = {} if name == "bert" else {"use_cache": False}
    packed = model(input_ids=tokens, **options, **packing).logits
    alone = [model(input_ids=part).logits for part in tokens.split(PACKED_LENGTHS, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(packed, model(input_ids=tokens).logits, atol=1e-2)


def test_packed_sequences_without_other_masks_build_none(calls, monkeypatch):
    """cu_seq_lens_q alone says it all: attention_varlen takes them, and no mask of [tokens, tokens] is made."""
    seen, varlen = [], functional.attention_varlen
    monkeypatch.setattr(
        functional, "attention_varlen", lambda *given, **options: seen.append(options) or varlen(*given, **options)
    )
    model = FAMILIES["llama"].make("bigmodel")
    starts = torch.tensor([0, 5, 6, 12], dtype=torch.int32)
    packing = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts.clone()}
    model(input_ids=inputs("llama")["input_ids"][:1], use_cache=False, **packing)
    assert len(seen) == model.config.num_hidden_layers and not calls
    assert all("mask" not in options and options["causal"] for options in seen)


def test_packed_sequences_may_end_before_the_row_does(calls):
    """Padding behind the last sequence sees itself, as under the mask that a call for the weights gets."""
    module = torch.nn.Module()
    query, key, value = torch.randn(3, 1, 2, 8, 4)
    starts = torch.tensor([0, 3, 6], dtype=torch.int32)
    plain, weighed = (
        integration.attention_forward(module, query, key, value, None, cu_seq_lens_q=starts, output_attentions=wanted)[
            0
        ]
        for wanted in (False, True)
    )
    torch.testing.assert_close(plain, weighed)
    whole = torch.tensor([0, 3, 8], dtype=torch.int32)
    assert integration.attention_forward(module, query, key, value, None, cu_seq_lens_q=whole)[0].is_contiguous()


@pytest.mark.parametrize("name", PACKED_BY_POSITIONS)
def test_outputs_and_gradients_of_packed_sequences(name, calls):
    model = FAMILIES[name].make()
    given = {"input_ids": inputs(name)["input_ids"][:1], "position_ids": PACKED_POSITIONS, "use_cache": False}
    assert_as_eager(model, ours_of(model), given)
    assert all(options["mask"] is not None for options in calls)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_attention_weights_come_back(name):
    model, given = FAMILIES[name].make(), inputs(name, "right")
    if FAMILIES[name].kind in ("encoder", "decoder"):
        del given["attention_mask"]  # eager attention of a row that sees nothing is not ours
    expected, actual = (each(**given, output_attentions=True) for each in (model, ours_of(model)))
    kinds = [kind for kind in expected if kind.endswith("attentions") and expected[kind]]
    assert kinds
    for kind in kinds:
        for theirs, ours in zip(expected[kind], actual[kind], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_compiles_whole(calls):
    model, given = FAMILIES["llama"].make("bigmodel"), inputs("llama")
    expected, gradients = run(model, given)
    model.zero_grad()
    actual, ours = run(torch.compile(model, fullgraph=True, backend="aot_eager"), given)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, gradients[name.removeprefix("_orig_mod.")], rtol=1e-3, atol=1e-3)


def test_one_compiled_layer_takes_a_deferred_mask():
    model, given = FAMILIES["llama"].make("bigmodel"), inputs("llama")
    expected = logits(model, given)
    for layer in model.model.layers:
        layer.compile(backend="aot_eager")
    torch.testing.assert_close(logits(model, given), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    model, given = FAMILIES["mistral"].make("bigmodel"), inputs("mistral")
    _, expected = run(model, given)
    checkpointed = FAMILIES["mistral"].make("bigmodel").train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    _, actual = run(checkpointed, given)
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)


def attend(training=True, **options):
    module = torch.nn.Module().train(training)
    module.is_causal = True
    query, key = (torch.randn(2, heads, 6, 8, generator=torch.Generator().manual_seed(3)) for heads in (4, 2))
    return query, key, integration.attention_forward(module, query, key, key, None, **options)


def test_dropout_applies_in_training_only():
    query, key, (output, weights) = attend(dropout=0.5, output_attentions=True)
    assert (weights.tril()[weights.tril() != 0].numel()) < 0.8 * 2 * 4 * 21, "about half of 21 weights a head are left"
    torch.testing.assert_close(output.transpose(1, 2), weights @ key.repeat_interleave(2, dim=1))
    still = attend(training=False, dropout=0.5)[2][0]
    assert torch.equal(still, attend(training=False)[2][0]) and not torch.allclose(still, output)


def test_what_is_not_computed_is_refused():
    with pytest.raises(ValueError, match=r"^\[transformers\] Module passes indices \(sparse attention by index\)"):
        attend(indices=torch.zeros(2, 6, 3))


def may_attend(mask, q_length, kv_length):
    """[batch, q, kv]: which keys attention with a mask's options looks at, told by the weights of equal scores."""
    query, key = torch.zeros(BATCH, 1, q_length, 8), torch.zeros(BATCH, 1, kv_length, 8)
    value = torch.eye(kv_length).expand(BATCH, 1, -1, -1)
    return functional.attention(query, key, value, **mask.options())[:, 0] > 0


MASKS = {
    "causal": masking_utils.causal_mask_function,
    "everything": masking_utils.bidirectional_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(WINDOW),
    "window on both sides": masking_utils.sliding_window_bidirectional_mask_function(WINDOW),
}


@pytest.mark.parametrize("padded", [None, "left", "right"])
@pytest.mark.parametrize("name", list(MASKS))
def test_masks_that_options_can_say_are_not_built(name, padded):
    # (q_length, kv_length, q_offset, kv_offset): no cache, a growing one, a sliding one, and an empty static one
    for q_length, kv_length, q_offset, kv_offset in ((12, 12, 0, 0), (5, 12, 7, 0), (5, 8, 7, 4), (9, 12, 0, 0)):
        if q_offset == 0 and q_length < kv_length and name == "window on both sides":
            continue  # no option says this one
        arguments = {
            "batch_size": BATCH,
            "q_length": q_length,
            "kv_length": kv_length,
            "q_offset": q_offset,
            "kv_offset": kv_offset,
            "mask_function": MASKS[name],
            "attention_mask": None if padded is None else padding(padded).bool(),
        }
        mask = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["bigmodel"](**arguments)
        assert isinstance(mask, DeferredMask) and mask._built is None
        given = mask.options()["mask"]
        assert given is None if padded is None else given.shape == (BATCH, 1, 1, kv_length)
        seen = may_attend(mask, q_length, kv_length)
        expected = masking_utils.sdpa_mask(**arguments, allow_is_causal_skip=False)
        assert torch.equal(seen, expected[:, 0]) and torch.equal(mask & True, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_function": masking_utils.chunked_causal_mask_function(WINDOW, torch.zeros(BATCH, dtype=torch.long))},
        {"mask_function": lambda batch, head, query, key: (key <= query) & (key != 3)},
        {"q_offset": 3},
        {"q_length": 1, "q_offset": 5},
    ],
    ids=["chunks", "a user's", "half-full static cache", "one query"],
)
def test_other_masks_are_those_of_sdpa(changes):
    arguments = {"batch_size": BATCH, "q_length": 6, "kv_length": LENGTH, "attention_mask": padding("left").bool()}
    arguments |= changes
    mask = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["bigmodel"](**arguments)
    assert type(mask) is torch.Tensor and torch.equal(mask, masking_utils.sdpa_mask(**arguments))


def test_a_model_may_read_and_write_its_mask():
    arguments = {"batch_size": BATCH, "q_length": LENGTH, "kv_length": LENGTH}
    mask = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["bigmodel"](**arguments)
    assert mask.shape == (BATCH, 1, LENGTH, LENGTH) and mask.dtype == torch.bool
    assert type(mask[:, :, :, :4]) is torch.Tensor
    mask[:, :, :, 2] = False
    assert not may_attend(mask, LENGTH, LENGTH)[:, :, 2].any()


@pytest.mark.parametrize("version", ["4.57.6", "5.3.0", "6.0.0"])
def test_other_versions_are_refused(version, monkeypatch):
    monkeypatch.setattr("transformers.__version__", version)
    expected = rf"^\[transformers\] transformers is version {version}: expected at least 5.4 and below 6"
    with pytest.raises(ImportError, match=expected):
        integration.register()


def test_says_how_to_install_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"^\[transformers\].*pip install 'bigmodel_kernels\[transformers\]'"):
        integration.register()


def test_importing_the_package_does_not_import_transformers():
    code = (
        "import sys, bigmodel_kernels.functional, bigmodel_kernels.integrations.transformers; "
        "sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
