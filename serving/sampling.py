"""How the next token is chosen from a model's logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from appliance.errors import EngineFailed, InvalidRequest

MAX_LOGPROBS = 20
BLOCK = 64
GREEDY_BELOW = 1e-5  # temperatures that leave no choice in float32


@dataclass(frozen=True)
class Sampling:
    """One request's choices; the defaults are OpenAI's. Raises InvalidRequest naming the field.

    Applied in this order: logit bias, penalties, temperature, top-k, top-p.
    """

    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest token. 0 to 2."""

    top_p: float = 1.0
    """Keep the fewest likeliest tokens whose probabilities reach this sum. Above 0, at most 1."""

    top_k: int = 0
    """Keep this many likeliest tokens; 0 keeps all."""

    repetition_penalty: float = 1.0
    """Logits of tokens in prompt and answer are divided by it where positive, else multiplied
    (CTRL, arXiv:1909.05858, section 4.1). 0.01 to 100; 1 changes nothing."""

    presence_penalty: float = 0.0
    """Taken once from the logit of each token in the answer (OpenAI's API reference). −2 to 2."""

    frequency_penalty: float = 0.0
    """Taken from the logit of a token for each time it is in the answer. −2 to 2."""

    seed: int | None = None
    """Any integer: same seed, same logits, same answer. None: a fresh one."""

    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id to what is added to its logit. −100 to 100."""

    logprobs: int | None = None
    """None: no log probabilities; n: the chosen token's and those of the n likeliest. 0 to 20.
    They are the model's own, before bias, penalties and temperature."""

    def __post_init__(self) -> None:
        bounds = (
            ("temperature", self.temperature, 0.0, 2.0),
            ("presence_penalty", self.presence_penalty, -2.0, 2.0),
            ("frequency_penalty", self.frequency_penalty, -2.0, 2.0),
            # Beyond this a logit could leave float32.
            ("repetition_penalty", self.repetition_penalty, 0.01, 100.0),
            ("logprobs", self.logprobs or 0, 0, MAX_LOGPROBS),
            *(("logit_bias", bias, -100.0, 100.0) for bias in self.logit_bias.values()),
        )
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise _wrong(name, value, f"a number from {low:g} to {high:g}")
        if not 0 < self.top_p <= 1:
            raise _wrong("top_p", self.top_p, "a number above 0 and at most 1")
        if self.top_k < 0:
            raise _wrong("top_k", self.top_k, "0 (all tokens) or more")
        for token in self.logit_bias:
            if token < 0:
                raise _wrong("logit_bias", token, "token ids as keys")


@dataclass(frozen=True)
class Token:
    """One generated token. Log probabilities are natural logarithms, likeliest first."""

    id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one request, and remembers them for the penalties.

    One random number is drawn per token from the request's own generator, so that an answer does
    not depend on the requests that share its batch.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab_size: int) -> None:
        self._sampling = sampling
        self._seen = np.zeros(vocab_size, np.bool_)
        self._seen[list(prompt)] = True
        self._counts = np.zeros(vocab_size, np.float32)
        self._bias_ids = list(sampling.logit_bias)
        self._biases = np.array(list(sampling.logit_bias.values()), np.float32)
        seed = None if sampling.seed is None else sampling.seed % 2**64
        self._random = np.random.default_rng(seed)

    def choose(self, logits: NDArray[np.float32]) -> Token:
        """The next token for logits `[V]`. Raises EngineFailed where they are not finite."""
        scores = self._penalised(logits)
        likeliest = int(scores.argmax())
        if not np.isfinite(scores[likeliest]):
            raise EngineFailed(
                "the model's logits are not finite",
                hint="The weights or the backend are broken: run `appliance doctor`.",
            )
        if self._sampling.temperature < GREEDY_BELOW:
            chosen = likeliest
        else:
            scores = (scores - scores[likeliest]) / np.float32(self._sampling.temperature)
            chosen = draw(scores, self._random.random(), self._sampling.top_k, self._sampling.top_p)
        self._seen[chosen] = True
        self._counts[chosen] += 1
        if self._sampling.logprobs is None:
            return Token(chosen)
        return Token(chosen, *log_probabilities(logits, chosen, self._sampling.logprobs))

    def _penalised(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        s = self._sampling
        scores = np.array(logits, np.float32)
        scores[self._bias_ids] += self._biases
        if s.repetition_penalty != 1:
            seen = scores[self._seen]
            penalty = np.float32(s.repetition_penalty)
            scores[self._seen] = np.where(seen > 0, seen / penalty, seen * penalty)
        if s.presence_penalty or s.frequency_penalty:
            presence, frequency = np.float32(s.presence_penalty), np.float32(s.frequency_penalty)
            scores -= presence * (self._counts > 0) + frequency * self._counts
        return scores


def draw(scores: NDArray[np.float32], number: float, top_k: int, top_p: float) -> int:
    """The token that `number`, from [0, 1), falls on in the softmax of scores `[V]` (at most 0)
    cut to the top_k likeliest and then to the nucleus of top_p (arXiv:1904.09751, section 3.1).
    """
    ids: NDArray[np.int64] | None = None
    if 0 < top_k < scores.size:
        ids = largest(scores, top_k)
        scores = scores[ids]
    weights = np.exp(scores)
    if top_p < 1:
        kept = nucleus(weights, top_p)
        ids = kept if ids is None else ids[kept]
        weights = weights[kept]
    place = fall(weights, number)
    return place if ids is None else int(ids[place])


def fall(weights: NDArray[np.float32], number: float) -> int:
    """The place in weights `[N]` where their running sum exceeds `number`, from [0, 1), of it all.

    First finds the block, then the place in it: a running sum over all of a vocabulary takes
    numpy twenty times as long.
    """
    starts = np.arange(0, weights.size, BLOCK)
    sums = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = min(number * sums[-1], np.nextafter(sums[-1], 0))
    block = int(np.searchsorted(sums, target, side="right"))
    start = int(starts[block])
    within = np.cumsum(weights[start : start + BLOCK], dtype=np.float64)
    within += sums[block] - within[-1]  # both sums end at the same number, so that none is missed
    return start + int(np.searchsorted(within, target, side="right"))


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest values `[N]`, largest first.

    The count-th largest of the blocks' maxima is at most the count-th largest value, so that
    only what reaches it is sorted.
    """
    count = min(count, values.size)
    starts = np.arange(0, values.size, BLOCK)
    if count < starts.size:
        bound = np.partition(np.maximum.reduceat(values, starts), -count)[-count]
        places = np.flatnonzero(values >= bound)
    else:
        places = np.argpartition(values, -count)[-count:]
    order = np.argsort(-values[places], kind="stable")[:count]
    return np.asarray(places[order], np.int64)


def nucleus(weights: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """Places of the fewest largest weights whose sum reaches top_p of the whole.

    Sorts a few of the largest, and more only where those do not reach: a vocabulary of 49,152
    is rarely sorted whole.
    """
    enough = top_p * weights.sum(dtype=np.float64)
    count = 32
    while True:
        count = min(count, weights.size)
        places = largest(weights, count)
        sums = np.cumsum(weights[places], dtype=np.float64)
        if sums[-1] >= enough or count == weights.size:
            return places[: int(np.searchsorted(sums, enough)) + 1]
        count *= 8


def log_probabilities(
    logits: NDArray[np.float32], chosen: int, count: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The natural log probability of one token, and the `count` likeliest (id, log probability)."""
    peak = float(logits.max())
    total = peak + float(np.log(np.exp(logits - np.float32(peak)).sum(dtype=np.float64)))
    top = largest(logits, count).tolist() if count else []
    return float(logits[chosen]) - total, tuple((i, float(logits[i]) - total) for i in top)


def _wrong(name: str, value: object, allowed: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is {value}", hint=f"Allowed: {allowed}.", param=name)
