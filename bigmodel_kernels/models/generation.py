"""Text from a CausalLM: greedy, sampled or by beam search, many prompts at a time."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bigmodel_kernels.models.kv_cache import KVCache
from bigmodel_kernels.models.prompts import as_lists
from bigmodel_kernels.models.stop_runs import StopRuns


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from logits; `generate` says what each field does."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "repetition_penalty"):
            if not (name == "top_p" and self.top_p is None):
                _check_number(name, getattr(self, name))
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"[generate] temperature is {self.temperature}: expected 0 (greedy) or a positive number")
        if self.top_k is not None:
            _check_whole("top_k", self.top_k, 1)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"[generate] top_p is {self.top_p}: expected a number above 0 and at most 1")
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise ValueError(f"[generate] repetition_penalty is {self.repetition_penalty}: expected a positive number")
        for name, value in (("top_k", self.top_k), ("top_p", self.top_p)):
            if self.temperature == 0 and value is not None and (name, value) != ("top_p", 1):
                raise ValueError(
                    f"[generate] {name} is {value} and the temperature 0, which takes the likeliest token: expected a "
                    "temperature above 0 (1: the model's own probabilities) to draw by"
                )

    def penalised(self, logits: Tensor, seen: Tensor | None) -> Tensor:
        """logits [batch, vocabulary], those of tokens seen divided by the penalty, or multiplied if negative."""
        if seen is None:
            return logits
        penalty = self.repetition_penalty
        return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each token [batch, vocabulary], after temperature, top-k and top-p; temperature must not be 0."""
        # Below the highest, which stays 0 however small the temperature; and no reciprocal of it overflows.
        logits = (logits - logits.amax(-1, keepdim=True)) / max(self.temperature, torch.finfo(logits.dtype).tiny)
        if self.top_k is not None and self.top_k < logits.size(-1):
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
            # A token stays while those before it have not reached top_p: the first always does.
            removed = ordered.cumsum(-1) - ordered >= self.top_p
            logits = logits.masked_fill(torch.zeros_like(removed).scatter(-1, order, removed), -math.inf)
        return logits.softmax(-1)

    def choose(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """[batch, vocabulary] to [batch]."""
        if self.temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial(self.probabilities(logits), 1, generator=generator).squeeze(-1)


class Decoder:
    """Runs a model forward token by token, with a cache, or without one over all tokens again.

    tokens: [batch, capacity], of which lengths[b] are those of sequence b, and the rest is padding.
    """

    def __init__(self, model, prompts: Tensor, lengths: Tensor, new_tokens: int, use_cache: bool) -> None:
        self.model, self.lengths, self.longest, self.cache = model, lengths, prompts.size(1), None
        self.tokens = F.pad(prompts, (0, new_tokens))
        if use_cache:
            self.cache = KVCache(model.config, *self.tokens.shape, _computing_dtype(model), prompts.device)

    def first(self) -> Tensor:
        """The logits [batch, vocabulary] that follow the prompts."""
        logits = self._logits_after_all()
        if self.cache is not None:
            self.cache.truncate(self.lengths)
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """The logits that follow one more token [batch] of each sequence."""
        self.append(tokens)
        if self.cache is None:
            return self._logits_after_all()
        return self._logits(self.model.hidden(tokens[:, None], self.cache)[:, 0])

    def append(self, tokens: Tensor) -> None:
        self.tokens.scatter_(1, self.lengths[:, None], tokens[:, None])
        self.lengths, self.longest = self.lengths + 1, self.longest + 1

    def select(self, rows: Tensor) -> None:
        """Row i goes on as what row rows[i] was."""
        self.tokens, self.lengths = self.tokens[rows], self.lengths[rows]
        if self.cache is not None:
            self.cache.reorder(rows)

    def _logits_after_all(self) -> Tensor:
        hidden = self.model.hidden(self.tokens[:, : self.longest], self.cache)
        return self._logits(hidden[torch.arange(len(hidden), device=hidden.device), self.lengths - 1])

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden).float()


@torch.no_grad()
def generate(
    model,
    prompts: Iterable[Iterable[int] | Tensor] | Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    beams: int = 1,
    length_penalty: float = 1.0,
    stop: int | Iterable[int | Sequence[int]] | Tensor = (),
    on_token: Callable[[int, int], None] | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """Continues each prompt; returns its new tokens.

    Args:
        model: a CausalLM; dropout is off meanwhile, and at the end every module is in the mode that it was in.
        prompts: sequences of tokens, of any lengths of at least 1, or a tensor [batch, length] of whole numbers. A
            single prompt is one of them, too: [[1, 2, 3]].
        max_new_tokens: at most so many for each prompt.
        temperature: 0 takes the likeliest token; else logits are divided by it and a token is drawn.
        top_k: draws from the k likeliest tokens only (Fan et al., 2018); not without a temperature.
        top_p: draws from the fewest tokens whose probabilities reach top_p (Holtzman et al., 2020); likewise.
        repetition_penalty: divides the positive and multiplies the negative logits of tokens that the sequence holds
            already (Keskar et al., "CTRL", 2019).
        beams: above 1: beam search, which keeps so many sequences of highest probability; not with a temperature.
        length_penalty: beam search's result is the sequence with the highest log-probability / length^length_penalty.
        stop: a token, or tokens and runs of tokens, each of which ends a sequence; they are not returned.
        on_token: called with (index of the prompt, token) as soon as a token is chosen and cannot be the beginning of
            a run of `stop` any more; not with beams.
        generator: of the draws; None: torch's default one.
        use_cache: False computes every step from all tokens anew: the same tokens, slowly.

    Raises ValueError for an empty prompt, options that do not fit, or a sequence longer than the config's length.
    """
    _check_beams(
        model.config, beams, length_penalty, drawing=temperature or top_k or top_p not in (None, 1), streaming=on_token
    )
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    prompts, stops = as_lists(prompts), StopRuns.of(stop)
    _check_lengths(model.config, prompts, max_new_tokens)
    if not prompts or max_new_tokens == 0:
        return [[] for _ in prompts]
    tokens, lengths = right_padded(prompts, model.embedding.weight.device)
    with evaluating(model):
        if beams > 1:
            return _search(model, tokens, lengths, max_new_tokens, sampling, beams, length_penalty, stops, use_cache)
        decoder = Decoder(model, tokens, lengths, max_new_tokens, use_cache)
        return _sample(decoder, max_new_tokens, sampling, stops, on_token, generator)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode; afterwards each module is in its own mode again, as train() would not have
    it: that puts all of them into one."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def right_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts of unequal length as [batch, longest], beginning together, and their lengths [batch]."""
    lengths = [len(prompt) for prompt in prompts]
    rows = [list(prompt) + [0] * (max(lengths) - len(prompt)) for prompt in prompts]
    return torch.tensor(rows, device=device), torch.tensor(lengths, device=device)


def _sample(decoder: Decoder, steps: int, sampling: Sampling, stops: StopRuns, on_token, generator) -> list[list[int]]:
    batch = decoder.tokens.size(0)
    results: list[list[int]] = [[] for _ in range(batch)]
    going, told = [True] * batch, [0] * batch
    logits = decoder.first()
    seen = _seen(decoder, sampling, logits)
    for step in range(steps):
        chosen = sampling.choose(sampling.penalised(logits, seen), generator)
        for row, token in enumerate(chosen.tolist()):
            if not going[row]:
                continue
            tokens = results[row]
            tokens.append(token)
            if ended := stops.ended(tokens):
                del tokens[-ended:]
            going[row] = not ended and step < steps - 1
            if on_token is not None:
                certain = len(tokens) - (stops.begun(tokens) if going[row] else 0)
                for known in tokens[told[row] : certain]:
                    on_token(row, known)
                told[row] = certain
        if not any(going):
            break
        if seen is not None:
            seen.scatter_(-1, chosen[:, None], True)
        logits = decoder.step(chosen)
    return results


def _search(
    model, prompts: Tensor, lengths: Tensor, steps: int, sampling: Sampling, beams: int, length_penalty: float,
    stops: StopRuns, use_cache: bool,
) -> list[list[int]]:  # fmt: skip
    """Beam search. A beam that has stopped stays among the others with its score, and goes on by one token of
    probability 1, which its length does not count."""
    batch, device = prompts.size(0), prompts.device
    rows = torch.arange(batch, device=device).repeat_interleave(beams)
    decoder = Decoder(model, prompts[rows], lengths[rows], steps, use_cache)
    logits = decoder.first()
    vocabulary = logits.size(-1)
    # All beams of a prompt are equal at first: only one of them counts.
    scores = torch.full((batch, beams), -math.inf, device=device)
    scores[:, 0] = 0.0
    added = torch.zeros(batch * beams, dtype=torch.int64, device=device)
    going = torch.ones(batch * beams, dtype=torch.bool, device=device)
    seen = _seen(decoder, sampling, logits)
    filler = torch.full((vocabulary,), -math.inf, device=device)
    filler[0] = 0.0
    base = torch.arange(batch, device=device)[:, None] * beams
    for step in range(steps):
        gains = sampling.penalised(logits, seen).log_softmax(-1)
        gains = torch.where(going[:, None], gains, filler)
        totals = (scores[..., None] + gains.view(batch, beams, vocabulary)).flatten(1)
        scores, index = totals.topk(beams, dim=-1)
        parents, chosen = (base + index // vocabulary).flatten(), (index % vocabulary).flatten()
        decoder.select(parents)
        added, going = added[parents], going[parents]
        ended = stops.ended_rows(decoder.tokens, decoder.lengths, added, chosen)
        added = added + going * (1 - ended)
        going = going & (ended == 0)
        if seen is not None:
            seen = seen[parents].scatter(-1, chosen[:, None], True)
        if not going.any() or step == steps - 1:
            decoder.append(chosen)
            break
        logits = decoder.step(chosen)
    best = (scores / added.view(batch, beams).clamp(min=1) ** length_penalty).argmax(-1)
    kept = (base.squeeze(-1) + best).tolist()
    firsts = lengths.tolist()
    return [
        decoder.tokens[row, first : first + int(added[row])].tolist() for row, first in zip(kept, firsts, strict=True)
    ]


def _seen(decoder: Decoder, sampling: Sampling, logits: Tensor) -> Tensor | None:
    """Which tokens each sequence holds, padding left out: boolean [batch, vocabulary]; None without a penalty."""
    if sampling.repetition_penalty == 1:
        return None
    seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    for row, length in enumerate(decoder.lengths.tolist()):
        seen[row, decoder.tokens[row, :length]] = True
    return seen


def _computing_dtype(model) -> torch.dtype:
    """What keys and values come in: the parameters' dtype, or autocast's."""
    weight = model.embedding.weight
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


def _check_whole(name: str, value: int, least: int) -> None:
    if not hasattr(value, "__index__") or value < least:
        raise ValueError(f"[generate] {name} is {value!r}: expected a whole number of at least {least}")


def _check_number(name: str, value: float) -> None:
    if not hasattr(value, "__float__"):
        raise ValueError(f"[generate] {name} is {value!r}: expected a number")


def _check_beams(config, beams: int, length_penalty: float, drawing, streaming) -> None:
    _check_whole("beams", beams, 1)
    if beams > config.vocabulary:
        raise ValueError(f"[generate] beams is {beams}: expected at most the vocabulary's {config.vocabulary}")
    _check_number("length_penalty", length_penalty)
    if not math.isfinite(length_penalty):
        raise ValueError(f"[generate] length_penalty is {length_penalty}: expected a finite number")
    if beams > 1 and (drawing or streaming is not None):
        raise ValueError("[generate] beams above 1 search: expected no temperature, top_k, top_p or on_token")


def _check_lengths(config, prompts: list[list[int]], max_new_tokens: int) -> None:
    _check_whole("max_new_tokens", max_new_tokens, 0)
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"[generate] prompt {index} is empty: expected at least one token")
        if not all(0 <= token < config.vocabulary for token in prompt):
            raise ValueError(f"[generate] prompt {index} holds a token outside the vocabulary of {config.vocabulary}")
    longest = max(map(len, prompts), default=0) + max_new_tokens
    if longest > config.length:
        raise ValueError(
            f"[generate] the longest prompt and {max_new_tokens} new tokens are {longest}: expected at most the "
            f"model's length, {config.length}"
        )
