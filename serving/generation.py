"""The answer to one request, on its way from the scheduler's thread to the reader's."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from typing import Literal

from appliance.errors import DeadlineExceeded, RequestError
from serving.sampling import Token

FinishReason = Literal["stop", "length"]

READER_GRACE = 5.0  # seconds past the deadline that a reader waits for a step to end


class Generation(Iterator[Token]):
    """The answer, token by token; the stop id itself is not given.

    Iterating waits for the next token, and raises DeadlineExceeded, RequestCancelled or
    EngineFailed where the answer ends early, at each further call again.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        """When the request has run out of its time, by `time.monotonic`."""

        self.finish_reason: FinishReason | None = None
        """None until the answer has ended well."""

        self.left: Literal["stop", "cancelled"] | None = None
        """Why the reader wants no more; the first reason counts."""

        self._items: queue.SimpleQueue[Token | RequestError | None] = queue.SimpleQueue()

    def __next__(self) -> Token:
        patience = max(0.0, self.deadline + READER_GRACE - time.monotonic())
        try:
            item = self._items.get(timeout=patience)
        except queue.Empty:
            self.cancel()
            raise self.too_late() from None
        if isinstance(item, Token):
            return item
        self._items.put(item)
        if item is None:
            raise StopIteration
        raise item

    def cancel(self) -> None:
        """End the request at the next step; safe from any thread, at any time, more than once."""
        self.left = self.left or "cancelled"

    def stop(self) -> None:
        """As `cancel`, where the reader has all that it asked for: a stop string was met."""
        self.left = self.left or "stop"

    def too_late(self) -> DeadlineExceeded:
        """The error of a request that has run out of its time."""
        return DeadlineExceeded(
            "the request ran out of its time",
            hint="Ask for fewer tokens, try again when the server is less busy, or raise "
            "serve.request_timeout.",
        )

    def give(self, token: Token) -> None:
        """Scheduler: one more token."""
        self._items.put(token)

    def end(self, outcome: str, error: RequestError | None) -> None:
        """Scheduler: the answer is over, well (`outcome` says why) or with an error."""
        if outcome in ("stop", "length"):
            self.finish_reason = "stop" if outcome == "stop" else "length"
        self._items.put(error)
