"""How the next token is chosen from a model's logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.errors import InvalidRequest

MAX_LOGPROBS = 20


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
    (CTRL, arXiv:1909.05858, section 4.1). Above 0; 1 changes nothing."""

    presence_penalty: float = 0.0
    """Taken once from the logit of each token in the answer (OpenAI's API reference). −2 to 2."""

    frequency_penalty: float = 0.0
    """Taken from the logit of a token for each time it is in the answer. −2 to 2."""

    seed: int | None = None
    """Same seed, same logits, same answer; None draws a fresh one."""

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
        if not 0 < self.repetition_penalty < float("inf"):
            raise _wrong("repetition_penalty", self.repetition_penalty, "a number above 0")
        if self.seed is not None and self.seed < 0:
            raise _wrong("seed", self.seed, "0 or more")
        for token in self.logit_bias:
            if token < 0:
                raise _wrong("logit_bias", token, "token ids as keys")


@dataclass(frozen=True)
class Token:
    """One generated token. Log probabilities are natural logarithms, likeliest first."""

    id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


def _wrong(name: str, value: object, allowed: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is {value}", hint=f"Allowed: {allowed}.", param=name)
