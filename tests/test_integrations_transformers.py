"""attn_implementation="bigmodel" against "eager", on small random models of every kind of attention."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from hugging_face import (
    ASPECTS,
    BATCH,
    FAMILIES,
    LENGTH,
    PACKED_LENGTHS,
    PACKED_POSITIONS,
    WINDOW,
    assert_as_eager,
    for_families_with,
    having,
    inputs,
    logits,
    of_kind,
    packed,
    padding,
    run,
    table,
    tested,
)
from transformers import masking_utils

from bigmodel_kernels import functional
from bigmodel_kernels.integrations import transformers as integration
from bigmodel_kernels.integrations.deferred_mask import DeferredMask


@pytest.fixture(autouse=True)
def registered():
    assert integration.register() == integration.register() == "bigmodel"


def spied(monkeypatch, name):
    """The options of each call of a function: an empty list says that the model went past it."""
    seen, function = [], getattr(functional, name)

    def spy(*tensors, **options):
        seen.append(options)
        return function(*tensors, **options)

    monkeypatch.setattr(functional, name, spy)
    return seen


@pytest.fixture
def calls(monkeypatch):
    return spied(monkeypatch, "attention")


@pytest.fixture
def varlen_calls(monkeypatch):
    return spied(monkeypatch, "attention_varlen")


def ours_of(model):
    copied = copy.deepcopy(model)
    copied.set_attn_implementation("bigmodel")
    return copied


@for_families_with("fp32")
def test_outputs_and_gradients(name, calls):
    model = FAMILIES[name].make()
    assert_as_eager(model, ours_of(model), inputs(name, side=None))
    assert calls


@for_families_with("bf16")
def test_outputs_and_gradients_in_bfloat16(name, calls):
    model = FAMILIES[name].make().to(torch.bfloat16)
    assert_as_eager(model, ours_of(model), inputs(name))
    assert calls


def assert_as_eager_when_padded(name, side, calls):
    """Decoders of another model's text or speech have padding of their own."""
    given = inputs(name, side)
    if "decoder_input_ids" in given:
        given["decoder_attention_mask"] = padding(side)[:, slice(7) if side == "left" else slice(-7, None)]
    model = FAMILIES[name].make()
    assert_as_eager(model, ours_of(model), given)
    assert any(options["mask"] is not None for options in calls)


@for_families_with("left")
def test_padding_on_the_left(name, calls):
    assert_as_eager_when_padded(name, "left", calls)


@for_families_with("right")
def test_padding_on_the_right(name, calls):
    assert_as_eager_when_padded(name, "right", calls)


def generate(model, name, **options):
    given = {key: x for key, x in inputs(name).items() if key != "decoder_input_ids"}
    return model.generate(**given, max_new_tokens=8, do_sample=False, **options)


@for_families_with("dynamic")
def test_generates_the_same_tokens_with_a_dynamic_cache(name, calls):
    model = FAMILIES[name].make()
    expected = generate(model, name)
    assert not calls
    assert torch.equal(generate(ours_of(model), name), expected) and calls


@for_families_with("static")
def test_generates_the_same_tokens_with_a_static_cache(name, calls):
    model = FAMILIES[name].make()
    expected = generate(model, name, cache_implementation="static")
    assert not calls
    assert torch.equal(generate(ours_of(model), name, cache_implementation="static"), expected) and calls


@for_families_with("compiled")
def test_generates_the_same_tokens_in_compiled_steps(name):
    """transformers compiles the steps of generate() where the cache is static, by itself on GPUs only."""
    model = FAMILIES[name].make()
    if name == "gpt_oss":  # eager experts are chosen in Python
        model.set_experts_implementation("batched_mm")
    expected = generate(model, name, cache_implementation="static")
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    config = transformers.CompileConfig(fullgraph=True, backend=backend, mode=None)
    config._compile_all_devices = True
    torch._dynamo.reset()
    model = ours_of(model)
    options = {"cache_implementation": "static", "compile_config": config}
    assert torch.equal(generate(model, name, **options), expected)
    # transformers counts what is in a sliding cache in Python: a second graph is for any count.
    assert len(graphs) == (2 if "sliding_window" in FAMILIES[name].options else 1)
    for graph in graphs:
        assert torch.ops.bigmodel.attention in [node.target for node in graph.graph.nodes]
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(generate(model, name, **options), expected)


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


@for_families_with("cu_seq_lens")
def test_packed_sequences_told_by_where_they_start(name):
    model = FAMILIES[name].make()
    by_starts, by_masks = packed(name)
    assert_as_eager(model, ours_of(model), by_masks, by_starts)


@for_families_with("positions")
def test_packed_sequences_told_by_their_positions(name, calls, varlen_calls):
    model = FAMILIES[name].make()
    if name == "whisper":  # several texts of one recording
        tokens = packed("llama")[0]["input_ids"]
        given = {"input_features": inputs(name)["input_features"][:1], "decoder_input_ids": tokens}
        given["decoder_position_ids"] = PACKED_POSITIONS
    else:
        given = {"input_ids": packed(name)[0]["input_ids"], "position_ids": PACKED_POSITIONS}
    assert_as_eager(model, ours_of(model), given | {"use_cache": False})
    assert varlen_calls and all(options["mask"] is None for options in calls)


@pytest.mark.parametrize("name", [name for name in having("positions") if name in having("cu_seq_lens")])
def test_packed_sequences_told_by_both(name, calls, varlen_calls):
    """As transformers.DataCollatorWithFlattening tells them."""
    model = FAMILIES[name].make()
    by_starts, _ = packed(name)
    tokens = by_starts["input_ids"][0].split(PACKED_LENGTHS)
    collator = transformers.DataCollatorWithFlattening(return_tensors="pt", return_flash_attn_kwargs=True)
    given = collator([{"input_ids": part.tolist()} for part in tokens])
    for key in ("input_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"):
        torch.testing.assert_close(given[key], by_starts[key])
    del given["labels"]
    assert_as_eager(model, ours_of(model), given | {"use_cache": False})
    assert varlen_calls and not calls


def test_packed_sequences_without_other_masks_build_none(calls, varlen_calls):
    """cu_seq_lens_q alone says it all: attention_varlen takes them, and no mask of [tokens, tokens] is made."""
    model = FAMILIES["llama"].make("bigmodel")
    starts = torch.tensor([0, 5, 6, 12], dtype=torch.int32)
    packing = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts.clone()}
    model(input_ids=inputs("llama")["input_ids"][:1], use_cache=False, **packing)
    assert len(varlen_calls) == model.config.num_hidden_layers and not calls
    assert all("mask" not in options and options["causal"] for options in varlen_calls)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_packed_rows_of_a_batch(name, calls, varlen_calls):
    """Each row its own sequences: 1, 3 and 2 of them."""
    model, tokens = FAMILIES[name].make(), inputs(name)["input_ids"]
    positions = torch.arange(LENGTH).repeat(BATCH, 1)
    positions[1] = PACKED_POSITIONS
    positions[2, 7:] -= 7
    given = {"input_ids": tokens, "position_ids": positions, "use_cache": False}
    assert_as_eager(model, ours_of(model), given)
    assert len(varlen_calls) == 2 and not calls


def test_positions_and_starts_that_disagree_keep_apart_what_either_does(varlen_calls):
    model = FAMILIES["llama"].make("bigmodel")
    given = {"input_ids": inputs("llama")["input_ids"][:1], "use_cache": False, "position_ids": PACKED_POSITIONS}
    actual = model(**given, cu_seq_lens_q=torch.tensor([0, 5, 8, 12], dtype=torch.int32)).logits
    assert not varlen_calls
    given["position_ids"] = torch.tensor([[0, 1, 2, 3, 4, 0, 0, 1, 0, 1, 2, 3]])
    torch.testing.assert_close(actual, model(**given).logits, rtol=1e-4, atol=1e-4)


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


@for_families_with("weights")
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


@for_families_with("torch.compile")
def test_compiles_whole(name):
    model, given = FAMILIES[name].make("bigmodel"), inputs(name)
    if name in having("dynamic"):
        given["use_cache"] = False
    expected, gradients = run(model, given)
    model.zero_grad()
    actual, ours = run(torch.compile(model, fullgraph=True, backend="aot_eager"), given)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    for each, gradient in ours.items():
        torch.testing.assert_close(gradient, gradients[each.removeprefix("_orig_mod.")], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_one_compiled_layer_takes_a_deferred_mask(packed):
    model, given = FAMILIES["llama"].make("bigmodel"), inputs("llama")
    if packed:
        given = {"input_ids": given["input_ids"][:1], "position_ids": PACKED_POSITIONS, "use_cache": False}
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


# Models that take their mask from transformers' mask functions and compute attention by themselves: they would add our
# boolean mask to their scores.
OFF_THE_INTERFACE = {
    "BloomForCausalLM": {"hidden_size": 32, "n_layer": 1, "n_head": 4},
    "XGLMForCausalLM": {"d_model": 32, "ffn_dim": 48, "num_layers": 1, "attention_heads": 4},
    "MPNetModel": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4},
}


@pytest.mark.parametrize("name", list(OFF_THE_INTERFACE))
def test_models_off_the_attention_interface_are_refused(name):
    model_class = getattr(transformers, name)
    config = model_class.config_class(vocab_size=64, **OFF_THE_INTERFACE[name])
    model = model_class._from_config(config, attn_implementation="bigmodel").eval()
    for padded in (False, True):
        attention_mask = torch.ones(2, 5, dtype=torch.long)
        attention_mask[0, :2] = 0 if padded else 1
        with pytest.raises(
            ValueError, match=r"^\[transformers\] \w+ computes attention by itself.* expected attn_impl"
        ):
            model(input_ids=torch.arange(10).view(2, 5), attention_mask=attention_mask)
    with pytest.raises(ValueError, match=r"^\[transformers\] \w+ computes attention by itself"):
        torch.compile(model.forward, backend="eager")(input_ids=torch.arange(10).view(2, 5))


def test_a_model_without_attention_layers_of_its_own_is_not_refused():
    """PaliGemma's are Gemma's and SigLIP's."""
    from bigmodel_kernels.integrations.transformers_masks import mask_for_attention

    model_class = transformers.PaliGemmaForConditionalGeneration
    config = model_class.config_class.__new__(model_class.config_class)
    assert mask_for_attention(1, 4, 4, config=config).shape == (1, 1, 4, 4)


def test_the_documented_table_is_what_is_tested():
    """`python tests/hugging_face.py` prints it."""
    import test_replace_hugging_face  # noqa: F401 (for the aspects that it tests)

    assert tested == set(ASPECTS)
    assert all(family.lacks.keys() <= set(ASPECTS) for family in FAMILIES.values())
    page = (Path(__file__).parent.parent / "docs" / "hugging-face.md").read_text()
    assert table() in page, "docs/hugging-face.md: the table is not what `python tests/hugging_face.py` prints"


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


def test_a_mask_of_packed_sequences_is_built_when_looked_at():
    made = masking_utils.packed_sequence_mask_function(torch.tensor([[0] * 5 + [1] + [2] * 6]).expand(BATCH, -1))
    arguments = {"batch_size": BATCH, "q_length": LENGTH, "kv_length": LENGTH}
    arguments["mask_function"] = masking_utils.and_masks(MASKS["window"], made)
    mask = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["bigmodel"](**arguments)
    starts, options = mask.packed()
    assert starts.tolist() == [start + row * LENGTH for row in range(BATCH) for start in (0, 5, 6)] + [BATCH * LENGTH]
    assert options == {"causal": "bottom_right", "window": (WINDOW - 1, -1)} and mask._built is None
    expected = masking_utils.sdpa_mask(**arguments, allow_is_causal_skip=False)
    assert torch.equal(mask & True, expected) and mask.packed() is None
    assert torch.equal(may_attend(mask, LENGTH, LENGTH), expected[:, 0])


@pytest.mark.parametrize(
    "changes",
    [
        {
            "mask_function": masking_utils.remap_positions_for_packed_sequence(
                MASKS["causal"], PACKED_POSITIONS.expand(BATCH, -1)
            )
        },
        {"mask_function": masking_utils.chunked_causal_mask_function(WINDOW, torch.zeros(BATCH, dtype=torch.long))},
        {"mask_function": lambda batch, head, query, key: (key <= query) & (key != 3)},
        {"q_offset": 3},
        {"q_length": 1, "q_offset": 5},
    ],
    ids=["positions of unknown sequences", "chunks", "a user's", "half-full static cache", "one query"],
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
