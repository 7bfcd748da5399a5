"""Continuous batching: one thread owns the engine, requests join and leave at every step."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.errors import (
    EngineFailed,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    RequestCancelled,
    RequestError,
)
from serving.engine.base import Engine, Logits
from serving.generation import FinishReason, Generation
from serving.sampling import Sampler, Sampling, Token

__all__ = ["FinishReason", "Generation", "Request", "Sampling", "Scheduler", "Token"]

PREFILL_CHUNK = 256  # prompt tokens between two decode steps: running answers go on meanwhile
UNHEALTHY_AFTER = 3  # failures of the engine in a row
CLOSING_GRACE = 30.0  # seconds that the engine may take to end its last step

OUTCOMES = ("stop", "length", "cancelled", "deadline", "failed", "refused")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What to generate. `timeout` in seconds from submission, time in the queue included."""

    prompt: tuple[int, ...]
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)
    timeout: float = 300.0


@dataclass(eq=False)
class _Sequence:
    """One request on its way; only the scheduler's thread touches it."""

    request: Request
    generation: Generation
    sampler: Sampler
    left: int  # tokens that may still be given
    slot: int = -1
    prefilled: int = 0  # prompt tokens in the engine
    last: int = -1  # the token that the next step reads

    @property
    def ready(self) -> bool:
        return self.prefilled == len(self.request.prompt)


class Scheduler:
    """Admits requests to the engine's slots and gives each its own tokens."""

    def __init__(self, engine: Engine, *, max_queue: int) -> None:
        self.max_length = engine.max_length
        self._engine = engine
        self._max_queue = max_queue
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._outcomes: Counter[str] = Counter()
        self._tokens = self._prompt_tokens = self._failures = 0
        self._closing_at: float | None = None
        self._lock = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def capacity(self) -> int:
        """Requests that may run and wait at once."""
        return self._engine.slots + self._max_queue

    def submit(self, request: Request) -> Generation:
        """Queue a request. Raises InvalidRequest, PromptTooLong, or Overloaded where `max_queue`
        requests wait already or the scheduler is closing."""
        return self.submit_all([request])[0]

    def submit_all(self, requests: Sequence[Request]) -> list[Generation]:
        """Queue all of these requests or, where one cannot be, none. Raises as `submit` does."""
        sequences = [self._sequence(request) for request in requests]
        with self._lock:
            self._refuse_if_full(len(sequences))
            self._waiting += sequences
            self._lock.notify()
        return [sequence.generation for sequence in sequences]

    @property
    def healthy(self) -> bool:
        """False after the engine failed several times in a row, until it works again."""
        return self._thread.is_alive() and self._failures < UNHEALTHY_AFTER

    def stats(self) -> dict[str, Any]:
        """slots, active, queued, tokens (generated), prompt_tokens, requests (outcome → count:
        stop, length, cancelled, deadline, failed, refused)."""
        with self._lock:
            return {
                "slots": self._engine.slots,
                "active": len(self._running),
                "queued": len(self._waiting),
                "tokens": self._tokens,
                "prompt_tokens": self._prompt_tokens,
                "requests": {outcome: self._outcomes[outcome] for outcome in OUTCOMES},
            }

    def close(self, *, drain: float = 0.0) -> None:
        """Refuse new requests, let the others go on for `drain` seconds, end the rest with
        EngineFailed, and close the engine. Safe to call again."""
        with self._lock:
            self._closing_at = time.monotonic() + drain
            self._lock.notify()
        self._thread.join(drain + CLOSING_GRACE)

    def _sequence(self, request: Request) -> _Sequence:
        _check(request, self._engine)
        return _Sequence(
            request,
            Generation(time.monotonic() + request.timeout),
            Sampler(request.sampling, request.prompt, self._engine.vocab_size),
            left=min(request.max_tokens, self.max_length - len(request.prompt)),
        )

    def _refuse_if_full(self, wanted: int) -> None:
        reason = hint = ""
        taken = len(self._waiting) + len(self._running)
        if self._closing_at is not None:
            reason, hint = "the server is shutting down", "Send the request to another server."
        elif taken + wanted > self.capacity:
            reason = f"{taken} of {self.capacity} places are taken, this request needs {wanted}"
            hint = "Try again later, or raise serve.max_queue or serve.slots."
        if reason:
            self._outcomes["refused"] += 1
            raise Overloaded(reason, hint=hint)

    # What follows runs in the scheduler's own thread.

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._retire()
                self._admit()
                self._prefill()
                self._decode()
        finally:
            ending = EngineFailed("the server is shutting down", hint="Send the request again.")
            with self._lock:
                self._closing_at = self._closing_at or time.monotonic()
                sequences = [*self._running, *self._waiting]
            for sequence in sequences:
                self._end(sequence, "failed", ending)
            self._engine.close()

    def _wait_for_work(self) -> bool:
        with self._lock:
            while not (self._waiting or self._running or self._closing_at is not None):
                self._lock.wait()
            if self._closing_at is None:
                return True
            return bool(self._waiting or self._running) and time.monotonic() < self._closing_at

    def _retire(self) -> None:
        """End what its reader has left or has run out of time."""
        now = time.monotonic()
        with self._lock:
            sequences = [*self._running, *self._waiting]
        for sequence in sequences:
            if sequence.generation.left == "stop":
                self._end(sequence, "stop")
            elif sequence.generation.left == "cancelled":
                self._end(sequence, "cancelled", RequestCancelled("the request was cancelled"))
            elif now > sequence.generation.deadline:
                self._end(sequence, "deadline", sequence.generation.too_late())

    def _admit(self) -> None:
        with self._lock:
            while self._waiting and len(self._running) < self._engine.slots:
                sequence = self._waiting.popleft()
                taken = {other.slot for other in self._running}
                sequence.slot = next(i for i in range(self._engine.slots) if i not in taken)
                self._running.append(sequence)

    def _prefill(self) -> None:
        """Give the engine one piece of one prompt, the oldest first."""
        sequence = next((s for s in self._running if not s.ready), None)
        if sequence is None:
            return
        end = sequence.prefilled + PREFILL_CHUNK
        piece = sequence.request.prompt[sequence.prefilled : end]
        try:
            logits = self._engine.prefill(sequence.slot, piece)
        except Exception as error:
            self._fail([sequence], error)
            return
        self._failures = 0
        self._prompt_tokens += len(piece)
        sequence.prefilled += len(piece)
        if sequence.ready:
            self._give(sequence, logits)

    def _decode(self) -> None:
        """One step for all answers under way."""
        batch = [sequence for sequence in self._running if sequence.ready]
        if not batch:
            return
        try:
            logits = self._engine.decode({s.slot: s.last for s in batch})
        except Exception as error:
            self._fail(batch, error)
            return
        self._failures = 0
        for sequence in batch:
            self._give(sequence, logits[sequence.slot])

    def _give(self, sequence: _Sequence, logits: Logits) -> None:
        """Choose the next token and hand it to the request, or end the request."""
        try:
            token = sequence.sampler.choose(logits)
        except Exception as error:
            self._fail([sequence], error)
            return
        if token.id in sequence.request.stop_ids:
            self._end(sequence, "stop")
            return
        self._tokens += 1
        sequence.generation.give(token)
        sequence.last = token.id
        sequence.left -= 1
        if sequence.left == 0:
            self._end(sequence, "length")

    def _fail(self, sequences: list[_Sequence], error: Exception) -> None:
        self._failures += 1
        logger.error("the engine failed %d requests", len(sequences), exc_info=error)
        for sequence in sequences:
            self._end(
                sequence,
                "failed",
                EngineFailed(
                    f"the engine failed: {error}",
                    hint="Send the request again; the server's log has the whole story.",
                ),
            )

    def _end(self, sequence: _Sequence, outcome: str, error: RequestError | None = None) -> None:
        """Free the sequence's place, then tell whoever waits for it."""
        if sequence.slot >= 0:
            try:
                self._engine.release(sequence.slot)
            except Exception as failure:
                self._failures += 1
                logger.error("slot %d could not be released", sequence.slot, exc_info=failure)
        with self._lock:
            (self._running if sequence.slot >= 0 else self._waiting).remove(sequence)
            self._outcomes[outcome] += 1
        sequence.generation.end(outcome, error)


def _check(request: Request, engine: Engine) -> None:
    """Raise InvalidRequest or PromptTooLong for what no engine of this size can answer."""
    vocabulary = range(engine.vocab_size)
    if not request.prompt:
        raise InvalidRequest("the prompt is empty", hint="Give at least one token.", param="prompt")
    for name, ids in (("prompt", request.prompt), ("logit_bias", request.sampling.logit_bias)):
        unknown = next((token for token in ids if token not in vocabulary), None)
        if unknown is not None:
            hint = f"Token ids are 0 to {engine.vocab_size - 1}."
            raise InvalidRequest(f"{name}: the model has no token {unknown}", hint=hint, param=name)
    for name, value in (("max_tokens", request.max_tokens), ("timeout", request.timeout)):
        if not value > 0:
            raise InvalidRequest(f"{name} is {value}", hint="Give more than 0.", param=name)
    if len(request.prompt) >= engine.max_length:
        raise PromptTooLong(
            f"the prompt has {len(request.prompt)} tokens; prompt and answer together may have "
            f"{engine.max_length}",
            hint="Shorten the prompt, or raise serve.max_length if the model's context allows.",
            param="prompt",
        )
