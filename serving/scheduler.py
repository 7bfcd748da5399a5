"""Continuous batching: one thread owns the engine, requests join and leave at every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from serving.engine.base import Engine
from serving.sampling import Sampling, Token

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """What to generate. `timeout` in seconds from submission, time in the queue included."""

    prompt: tuple[int, ...]
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)
    timeout: float = 300.0


class Generation(Iterator[Token]):
    """The answer to one request, token by token; the stop id itself is not given.

    Iterating waits for the next token, and raises DeadlineExceeded, RequestCancelled or
    EngineFailed where the answer ends early, at each further call again.
    """

    finish_reason: FinishReason | None
    """None until the answer has ended well."""

    def __next__(self) -> Token:
        raise NotImplementedError

    def cancel(self) -> None:
        """End the request at the next step; safe from any thread, at any time, more than once."""
        raise NotImplementedError


class Scheduler:
    """Admits requests to the engine's slots and gives each its own tokens."""

    def __init__(self, engine: Engine, *, max_queue: int) -> None:
        raise NotImplementedError

    def submit(self, request: Request) -> Generation:
        """Queue a request. Raises InvalidRequest, PromptTooLong, or Overloaded where `max_queue`
        requests wait already or the scheduler is closing."""
        raise NotImplementedError

    @property
    def healthy(self) -> bool:
        """False after the engine failed several times in a row, until it works again."""
        raise NotImplementedError

    def stats(self) -> dict[str, Any]:
        """slots, active, queued, tokens (generated), prompt_tokens, requests (outcome → count:
        stop, length, cancelled, deadline, failed, refused)."""
        raise NotImplementedError

    def close(self, *, drain: float = 0.0) -> None:
        """Refuse new requests, let the others go on for `drain` seconds, end the rest with
        EngineFailed, and close the engine."""
        raise NotImplementedError
