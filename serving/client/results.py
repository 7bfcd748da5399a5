"""What both clients give and take: one set of types, whichever door answers."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict

from typing_extensions import Self, Unpack

Messages = Sequence[Mapping[str, str]]
"""`[{"role": "user", "content": "…"}]`, oldest first."""

TIMEOUT = 300.0
"""Default seconds that a call may take."""

CONNECT_TIMEOUT = 5.0
"""Seconds to reach the server."""


class Options(TypedDict, total=False):
    """How to choose an answer's tokens; protos/appliance/v1 has ranges and defaults."""

    model: str
    max_completion_tokens: int
    temperature: float
    top_p: float
    top_k: int
    n: int
    stop: Sequence[str]
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    seed: int
    logprobs: int


@dataclass(frozen=True)
class Usage:
    """Tokens read and generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its natural log-probability, and the likeliest tokens at its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Choice:
    """One answer; `finish_reason` is `stop` or `length`."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What `chat` and `generate` give."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text


@dataclass(frozen=True)
class Chunk:
    """The next piece of a stream: of the answer number `index`; the last has only the usage."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Model:
    """A served model; `max_length` is the longest prompt and answer together, in tokens."""

    id: str
    max_length: int


class Client(Protocol):
    """What both clients can do.

    Calls raise the RequestError that the server names, and DeployError where none answers.
    Leaving a stream early, by closing it, ends the answer on the server.
    """

    def chat(self, messages: Messages, **options: Unpack[Options]) -> Answer:
        """Answer a conversation."""
        ...

    def chat_stream(
        self, messages: Messages, **options: Unpack[Options]
    ) -> Generator[Chunk, None, None]:
        """Answer a conversation, piece by piece."""
        ...

    def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Answer:
        """Continue a text or token ids."""
        ...

    def generate_stream(
        self, prompt: str | Sequence[int], **options: Unpack[Options]
    ) -> Generator[Chunk, None, None]:
        """Continue a text or token ids, piece by piece."""
        ...

    def models(self) -> list[Model]:
        """What is served."""
        ...

    def ready(self) -> bool:
        """Whether the server takes requests."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...
