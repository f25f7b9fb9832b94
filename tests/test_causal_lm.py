"""CausalLM: against Hugging Face's models, with and without a cache, and every way to generate."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import bigmodel_kernels as bmk
from bigmodel_kernels.models import CausalLM, CausalLMConfig, kv_cache
from bigmodel_kernels.models.generation import Sampling
from bigmodel_kernels.models.stop_runs import StopRuns

SMALL = {"vocabulary": 61, "width": 32, "layers": 2, "heads": 4, "hidden": 48, "length": 40}
CONFIGS = {
    "gpt": CausalLMConfig.gpt(**SMALL),
    "llama": CausalLMConfig.llama(**SMALL, kv_heads=2),
    "llama_tied": CausalLMConfig.llama(**SMALL, kv_heads=1, tied=True, head_dim=12),
}
PROMPTS = [[5, 3, 60, 7, 1], [9], [2, 2, 4], [11, 0, 13, 17, 19, 23, 29]]


def make(name, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    model = CausalLM(CONFIGS[name]).to(dtype).eval()
    with torch.no_grad():  # larger than at the start of training, so that tokens differ
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


# Rotary frequencies of a small Llama, of which Llama 3.1's are some in each of its three parts.
ROPE = {
    "llama_linear": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0},
    "llama_3.1": {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def small_hugging_face(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    if kind.startswith("gpt2"):
        config = transformers.GPT2Config(
            vocab_size=67, n_embd=24, n_layer=2, n_head=3, n_positions=32, tie_word_embeddings=kind != "gpt2_untied"
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=67,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            intermediate_size=40,
            max_position_embeddings=32,
            tie_word_embeddings=kind == "llama_tied",
            attention_bias=kind in ("llama_biases", "llama_attention_bias"),
            mlp_bias=kind in ("llama_biases", "llama_mlp_bias"),
            head_dim=20 if kind in ROPE else None,
            **({"rope_parameters": ROPE[kind]} if kind in ROPE else {}),
        )
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def check_logits(theirs, weights):
    ours = CausalLM.from_hugging_face(theirs.config, weights).eval()
    tokens = torch.randint(0, 67, (3, 17))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "kind",
    ["gpt2", "gpt2_untied", "llama", "llama_tied", "llama_biases", "llama_attention_bias", "llama_mlp_bias", *ROPE],
)
def test_hugging_face_weights_give_the_same_logits(kind):
    theirs = small_hugging_face(kind)
    check_logits(theirs, theirs.state_dict())


@pytest.mark.parametrize(("kind", "base"), [("gpt2", "transformer"), ("llama_tied", "model")])
def test_hugging_face_weights_of_the_base_model_are_found_too(kind, base):
    """GPT-2's file on the Hub has these names, and the causal mask that older versions kept."""
    theirs = small_hugging_face(kind)
    weights = getattr(theirs, base).state_dict()
    if kind == "gpt2":
        weights["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    check_logits(theirs, weights)


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("gpt2", "transformer.wpe.weight"), ("llama", "lm_head.weight"), ("llama", "model.norm.weight")],
)
def test_hugging_face_weights_that_are_missing_are_named(kind, missing):
    theirs = small_hugging_face(kind)
    weights = theirs.state_dict()
    del weights[missing]
    with pytest.raises(ValueError, match=rf"^\[CausalLM\] {missing} is missing"):
        CausalLM.from_hugging_face(theirs.config, weights)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_generates_what_hugging_face_generates(kind):
    theirs = small_hugging_face(kind)
    ours = CausalLM.from_hugging_face(theirs.config, theirs.state_dict())
    prompt = torch.randint(3, 67, (1, 6))
    expected = theirs.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert ours.generate(prompt, 12) == expected[:, 6:].tolist()


def test_other_models_are_refused():
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=r"\[CausalLM\] the model's type is 'bert'"):
        CausalLM.from_hugging_face(transformers.BertConfig(), {})
    scaled = transformers.LlamaConfig(rope_scaling={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(ValueError, match=r"\[CausalLM\] the rotary frequencies are scaled \(dynamic\)"):
        CausalLM.from_hugging_face(scaled, {})


@pytest.mark.parametrize("name", CONFIGS)
def test_no_position_sees_a_later_one(name):
    model, tokens = make(name), torch.randint(0, 61, (2, 12))
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 61
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def greedy_by_hand(model, prompt, steps):
    """The definition: the whole sequence through the model for each token, one prompt at a time."""
    tokens = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_is_the_definition(name, use_cache):
    """Prompts of unequal length in one batch, token for token what each alone gives without a cache."""
    model = make(name, torch.float64)
    expected = [greedy_by_hand(model, prompt, 20) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in expected}) > 1
    assert model.generate(PROMPTS, 20, use_cache=use_cache) == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_in_float32_with_and_without_cache(name):
    model = make(name)
    assert model.generate(PROMPTS, 20) == model.generate(PROMPTS, 20, use_cache=False)


@pytest.mark.parametrize("beams", [1, 3])
def test_steps_after_the_prompts_call_attention_decode(monkeypatch, beams):
    """In every layer of every step, with the lengths of prompts of unequal length; of attention only the prompts."""
    model, calls, lengths = make("llama"), [], []
    decode, attention = kv_cache.functional.attention_decode, kv_cache.functional.attention

    def counted_decode(query, key_cache, value_cache, cache_lengths, **options):
        calls.append("decode")
        lengths.append(cache_lengths.tolist())
        return decode(query, key_cache, value_cache, cache_lengths, **options)

    def counted_attention(*args, **options):
        calls.append("attention")
        return attention(*args, **options)

    monkeypatch.setattr(kv_cache.functional, "attention_decode", counted_decode)
    monkeypatch.setattr(kv_cache.functional, "attention", counted_attention)
    model.generate(PROMPTS, 4, beams=beams)
    assert calls == ["attention"] * 2 + ["decode"] * 6
    assert lengths == [[len(prompt) + i for prompt in PROMPTS for _ in range(beams)] for i in range(3) for _ in "12"]


def test_a_gradient_through_the_cache_is_refused():
    model = make("gpt")
    cache = kv_cache.KVCache(model.config, 1, 4, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        model(torch.tensor([[1, 2]]), cache)
    with pytest.raises(ValueError, match=r"\[attention_decode\] an input requires a gradient"):
        model(torch.tensor([[3]]), cache)


def test_autocast_generates():
    model = make("llama")
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model.generate(PROMPTS, 5)
    assert [len(each) for each in tokens] == [5] * 4


def test_stop_tokens_end_a_sequence_and_are_not_returned():
    model = make("gpt", torch.float64)
    whole = model.generate(PROMPTS, 20)
    stop = whole[0][3]
    for ours, tokens in zip(model.generate(PROMPTS, 20, stop=[stop]), whole, strict=True):
        assert ours == (tokens[: tokens.index(stop)] if stop in tokens else tokens)


def cut(tokens, runs):
    """The definition: up to the first place where a run ends, without the run; the longest if several end there."""
    for end in range(1, len(tokens) + 1):
        lengths = [len(run) for run in runs if tokens[:end][-len(run) :] == run]
        if lengths:
            return tokens[: end - max(lengths)]
    return tokens


@pytest.mark.parametrize("beams", [1, 3])
def test_runs_of_tokens_stop(beams):
    """Inside, at the end and at the beginning of what is generated; a run of which only a part is there does not."""
    model = make("gpt", torch.float64)
    whole = model.generate(PROMPTS, 12, beams=beams)
    first, second = whole[0], whole[3]
    runs = [first[2:5], second[10:], [second[4], 60, 60], [first[0], first[2]]]
    streamed = [[] for _ in PROMPTS]
    options = {"beams": beams} if beams > 1 else {"on_token": lambda row, token: streamed[row].append(token)}
    result = model.generate(PROMPTS, 12, stop=runs, **options)
    if beams == 1:
        assert result == streamed == [cut(tokens, runs) for tokens in whole]
        assert len(result[0]) < 12 and len(result[3]) < 12
    for tokens in result:
        assert cut(tokens, runs) == tokens
    assert result != whole
    starting = model.generate(PROMPTS[:1], 12, beams=beams, stop=[whole[0][:2]])
    assert starting == [[]] if beams == 1 else starting[0][:2] != whole[0][:2]


def test_a_run_does_not_reach_into_the_prompt():
    model = make("gpt", torch.float64)
    for beams in (1, 2):
        whole = model.generate([[5, 3]], 6, beams=beams)
        assert model.generate([[5, 3]], 6, beams=beams, stop=[[3, whole[0][0]]]) == whole


def test_a_token_may_be_the_beginning_of_several_runs():
    stops = StopRuns.of([torch.tensor([1, 1, 2]), [1, 3], torch.tensor(9)])
    assert stops.runs == [[1, 1, 2], [1, 3], [9]]
    assert [stops.begun(tokens) for tokens in ([], [1], [2, 1, 1], [1, 1, 1], [1, 2], [1, 1, 2])] == [0, 1, 2, 2, 0, 0]
    assert [stops.ended(tokens) for tokens in ([1], [1, 1, 2], [5, 1, 3], [9], [])] == [0, 3, 2, 1, 0]
    rows = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0], [7, 7, 7, 0], [1, 1, 0, 0]])
    ended = stops.ended_rows(rows, torch.tensor([3, 2, 3, 2]), torch.tensor([2, 1, 3, 1]), torch.tensor([2, 3, 9, 2]))
    assert ended.tolist() == [3, 2, 1, 0]  # the last one's begins in its prompt


def test_one_stop_token_may_stand_alone():
    model = make("gpt")
    stop = model.generate([[5, 3]], 8)[0][5]
    expected = model.generate([[5, 3]], 8, stop=[stop])
    assert model.generate([[5, 3]], 8, stop=stop) == expected == model.generate([[5, 3]], 8, stop=torch.tensor(stop))


def test_tokens_are_streamed():
    model = make("gpt")
    stop = model.generate(PROMPTS, 20)[1][4]
    streamed = [[] for _ in PROMPTS]
    result = model.generate(PROMPTS, 20, stop=[stop], on_token=lambda row, token: streamed[row].append(token))
    assert streamed == result and any(result)


@pytest.mark.parametrize("beams", [1, 2])
def test_every_module_keeps_its_mode(beams):
    """Also where generation is interrupted: a layer frozen in eval mode inside a model that trains, and the reverse."""
    model = make("gpt")
    modes = {name: index % 3 == 0 for index, (name, _) in enumerate(model.named_modules())}
    for name, module in model.named_modules():
        module.training = modes[name]
    during = []
    model.norm.register_forward_hook(lambda *_: during.append([module.training for module in model.modules()]))
    model.generate([[1]], 1, beams=beams)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert len(during) == 1 and not any(during[0])

    model.norm.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.generate([[1]], 1, beams=beams)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_repetition_penalty_forbids_when_large():
    model = make("gpt", torch.float64)
    plain, penalised = (model.generate([[1, 2, 3]], 20, repetition_penalty=penalty)[0] for penalty in (1.0, 1e9))
    assert len(set(plain)) < 20
    # A seen token's positive logit becomes 0, a negative one -infinity almost: some other is positive.
    assert len({1, 2, 3, *penalised}) == 23


def test_repetition_penalty_is_ctrls():
    logits, seen = torch.tensor([[2.0, -2.0, 3.0]]), torch.tensor([[True, True, False]])
    assert torch.equal(Sampling(repetition_penalty=2.0).penalised(logits, seen), torch.tensor([[1.0, -4.0, 3.0]]))


def test_probabilities_after_top_k_and_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.1, 0.7, 0.1]]).log()
    halves = Sampling(temperature=0.5).probabilities(logits)
    torch.testing.assert_close(halves, logits.exp() ** 2 / (logits.exp() ** 2).sum(-1, keepdim=True))
    two = Sampling(temperature=1.0, top_k=2).probabilities(logits[:1])
    torch.testing.assert_close(two, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    nucleus = Sampling(temperature=1.0, top_p=0.75).probabilities(logits[:1])
    torch.testing.assert_close(nucleus, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    first = Sampling(temperature=1.0, top_p=0.01).probabilities(logits)
    torch.testing.assert_close(first, torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]))


@pytest.mark.parametrize("temperature", [1e-7, 1e-40, 5e-324])
def test_a_tiny_temperature_takes_the_likeliest_token(temperature):
    model = make("gpt")
    assert model.generate(PROMPTS, 10, temperature=temperature) == model.generate(PROMPTS, 10)
    equal = Sampling(temperature=temperature).probabilities(torch.tensor([[-3.0, 1.0, 1.0, 0.0]]))
    assert torch.equal(equal, torch.tensor([[0.0, 0.5, 0.5, 0.0]]))


@pytest.mark.parametrize("beams", [1, 2])
def test_a_top_p_of_all_tokens_needs_no_temperature(beams):
    model = make("gpt")
    assert model.generate(PROMPTS, 3, beams=beams, top_p=1.0) == model.generate(PROMPTS, 3, beams=beams)


def test_prompts_may_be_tensors():
    model = make("gpt")
    expected = model.generate([[5, 3], [7, 1]], 6)
    assert model.generate(torch.tensor([[5, 3], [7, 1]], dtype=torch.int32), 6) == expected
    assert model.generate([torch.tensor([5, 3]), (7, 1)], 6) == expected


def test_samples_follow_the_models_probabilities():
    model = make("gpt")
    with torch.no_grad():
        expected = (model(torch.tensor([[5, 3]]))[0, -1] / 2).softmax(-1)
    count = 20000
    drawn = model.generate([[5, 3]] * count, 1, temperature=2.0, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(torch.tensor(drawn).flatten(), minlength=61) / count
    # Five standard deviations of a binomial share.
    assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt() + 1e-3).all()


def test_samples_repeat_from_a_seed():
    model = make("gpt")
    first, second = (
        model.generate(PROMPTS, 10, temperature=1.0, top_p=0.9, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert first == second != model.generate(PROMPTS, 10)


def log_probability(model, prompt, tokens):
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]]))[0].log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens))


@pytest.mark.parametrize("use_cache", [True, False])
def test_beam_search_finds_the_best_sequence(use_cache):
    """As many beams as there are tokens: none is lost after the first step, so the best of all pairs is found."""
    torch.manual_seed(4)
    config = CausalLMConfig.llama(vocabulary=7, width=16, layers=1, heads=2, hidden=24, length=10)
    model = CausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    prompts = [[first, second] for first in range(7) for second in range(7)] + [[3], [4, 1, 2]]
    best = [
        list(max(itertools.product(range(7), repeat=2), key=lambda tokens: log_probability(model, prompt, tokens)))
        for prompt in prompts
    ]
    assert model.generate(prompts, 2, beams=7, use_cache=use_cache) == best
    assert model.generate(prompts, 2) != best


def test_beams_stop():
    model = make("gpt", torch.float64)
    whole = model.generate(PROMPTS, 8, beams=3)
    assert [len(tokens) for tokens in whole] == [8] * 4
    stop = whole[0][2]
    for tokens in model.generate(PROMPTS, 8, beams=3, stop=[stop]):
        assert stop not in tokens


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_is_the_cross_entropy_of_the_logits(name):
    model, tokens = make(name).train(), torch.randint(0, 61, (2, 12))
    targets = tokens.roll(-1, 1)
    grads = []
    for loss in (model.loss(tokens, targets), F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())):
        grads.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_nothing():
    model, tokens = make("llama").train(), torch.randint(0, 61, (2, 12))
    grads = []
    for model.checkpointing in (False, True):
        loss = model.loss(tokens, tokens)
        grads.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for kept, computed_again in zip(*grads, strict=True):
        assert torch.equal(kept, computed_again)


def test_compiles_whole():
    model, tokens = make("llama"), torch.randint(0, 61, (2, 12))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens), model(tokens))


BAD = {
    "is empty": lambda model: model.generate([[1], []], 3),
    "outside the vocabulary": lambda model: model.generate([[61]], 3),
    "expected at most the model's length, 40": lambda model: model.generate([[1] * 38], 3),
    "temperature is None": lambda model: model.generate([[1]], 3, temperature=None),
    "top_p is '0.9'": lambda model: model.generate([[1]], 3, temperature=1.0, top_p="0.9"),
    "repetition_penalty is None": lambda model: model.generate([[1]], 3, repetition_penalty=None),
    "length_penalty is None": lambda model: model.generate([[1]], 3, beams=2, length_penalty=None),
    "temperature is -1": lambda model: model.generate([[1]], 3, temperature=-1),
    "top_k is 0": lambda model: model.generate([[1]], 3, top_k=0),
    "top_k is 2.5": lambda model: model.generate([[1]], 3, temperature=1.0, top_k=2.5),
    "top_k is 5 and the temperature 0": lambda model: model.generate([[1]], 3, top_k=5),
    "top_p is 0.9 and the temperature 0": lambda model: model.generate([[1]], 3, top_p=0.9),
    "top_p is 2": lambda model: model.generate([[1]], 3, top_p=2),
    "repetition_penalty is 0": lambda model: model.generate([[1]], 3, repetition_penalty=0),
    "beams is 0": lambda model: model.generate([[1]], 3, beams=0),
    "beams is 62": lambda model: model.generate([[1]], 3, beams=62),
    "expected no temperature": lambda model: model.generate([[1]], 3, beams=2, temperature=1.0),
    "expected no temperature, top_k": lambda model: model.generate([[1]], 3, beams=2, top_k=3),
    "top_p or on_token": lambda model: model.generate([[1]], 3, beams=2, on_token=print),
    "length_penalty is nan": lambda model: model.generate([[1]], 3, beams=2, length_penalty=float("nan")),
    "length_penalty is inf": lambda model: model.generate([[1]], 3, beams=2, length_penalty=float("inf")),
    "max_new_tokens is -1": lambda model: model.generate([[1]], -1),
    "max_new_tokens is 2.0": lambda model: model.generate([[1]], 2.0),
    "prompt 0 is 1: expected a sequence of whole numbers": lambda model: model.generate([1, 2, 3], 3),
    "prompt 1 is [2, 1.5]": lambda model: model.generate([[1], [2, 1.5]], 3),
    "prompt 0 is 'text'": lambda model: model.generate(["text"], 3),
    "prompt 0 is tensor([1., 2.])": lambda model: model.generate(torch.tensor([[1.0, 2.0]]), 3),
    "prompts has shape [3]": lambda model: model.generate(torch.tensor([1, 2, 3]), 3),
    "prompts is 1: expected a sequence of tokens for each": lambda model: model.generate(1, 3),
    "the sequence has length 41": lambda model: model(torch.zeros(1, 41, dtype=torch.int64)),
    "tokens has shape [3]": lambda model: model(torch.tensor([1, 2, 3])),
    "stop is None": lambda model: model.generate([[1]], 3, stop=None),
    "stop is 'a'": lambda model: model.generate([[1]], 3, stop=["a"]),
    "stop holds an empty sequence": lambda model: model.generate([[1]], 3, stop=[1, []]),
    "heads is 5": lambda model: CausalLMConfig(width=32, heads=5),
    "kv_heads is 3": lambda model: CausalLMConfig(width=32, heads=4, kv_heads=3),
    "norm is 'batch'": lambda model: CausalLMConfig(norm="batch"),
}


@pytest.mark.parametrize("text", BAD)
def test_bad_input(text):
    with pytest.raises(ValueError, match=r"^\[(generate|CausalLM)\] ") as caught:
        BAD[text](make("gpt"))
    assert text in str(caught.value)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_embedding(interleaved):
    module = bmk.nn.RotaryEmbedding(8, theta=100.0, interleaved=interleaved, max_positions=4)
    query, key = torch.randn(2, 3, 9, 12), torch.randn(2, 1, 9, 12)
    angles = torch.arange(9.0)[:, None] * 100.0 ** (-torch.arange(0, 8, 2) / 8)
    expected = bmk.rotary(query, key, angles.cos(), angles.sin(), interleaved=interleaved)
    for ours, theirs in zip(module(query, key), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not module.state_dict()
    low = module.bfloat16()
    assert low.tables(query.device, 9)[0].dtype == torch.float32
    assert low(query.bfloat16(), None, positions=torch.arange(9).flip(0))[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"^\[RotaryEmbedding\] dim"):
        bmk.nn.RotaryEmbedding(7)


def test_rotary_scaling():
    frequencies = 500.0 ** (-torch.arange(0, 20, 2, dtype=torch.float64) / 20)
    torch.testing.assert_close(bmk.nn.RotaryScaling(4.0)(frequencies), frequencies / 4)
    turns = frequencies * 16 / (2 * torch.pi)
    few, many = turns < 1, turns > 2
    between = ~few & ~many
    assert few.any() and many.any() and between.any()
    scaled = bmk.nn.RotaryScaling(8.0, 16, low=1.0, high=2.0)(frequencies)
    torch.testing.assert_close(scaled[few], frequencies[few] / 8)
    torch.testing.assert_close(scaled[many], frequencies[many])
    assert (scaled[between] < frequencies[between]).all() and (scaled[between] > frequencies[between] / 8).all()
    module = bmk.nn.RotaryEmbedding(20, theta=500.0, scaling=bmk.nn.RotaryScaling(8.0, 16, low=1.0, high=2.0))
    torch.testing.assert_close(module.tables(torch.device("cpu"), 5)[0][4], (4 * scaled).cos().float())
    for wrong in ({"factor": 0.0}, {"factor": 2.0, "length": 0}, {"factor": 2.0, "low": 4.0, "high": 1.0}):
        with pytest.raises(ValueError, match=r"^\[RotaryScaling\] got"):
            bmk.nn.RotaryScaling(**wrong)
