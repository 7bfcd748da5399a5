"""An engine that says what it is told, so that a test can put any token anywhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


class Scripted:
    """Every sequence says `script`, token by token, then `end` for ever.

    `pause` seconds pass at each step; step number `fail_at` and all after it raise.
    """

    name = "scripted"

    def __init__(
        self,
        script: Sequence[int],
        *,
        vocab_size: int,
        end: int = 2,
        slots: int = 2,
        max_length: int = 512,
        pause: float = 0.0,
        fail_at: int | None = None,
    ) -> None:
        self.script, self.end, self.pause, self.fail_at = script, end, pause, fail_at
        self.vocab_size, self.slots, self.max_length = vocab_size, slots, max_length
        self._said: dict[int, int] = {}

    def prefill(self, slot: int, ids: Sequence[int]) -> NDArray[np.float32]:
        self._said[slot] = 0
        return self._next(slot)

    def decode(self, tokens: Mapping[int, int]) -> dict[int, NDArray[np.float32]]:
        time.sleep(self.pause)
        return {slot: self._next(slot) for slot in tokens}

    def release(self, slot: int) -> None:
        self._said.pop(slot, None)

    def close(self) -> None:
        self._said.clear()

    def _next(self, slot: int) -> NDArray[np.float32]:
        at = self._said[slot]
        self._said[slot] = at + 1
        if self.fail_at is not None and at >= self.fail_at:
            raise RuntimeError("the engine broke, as the test wants")
        logits = np.zeros(self.vocab_size, np.float32)
        logits[self.script[at] if at < len(self.script) else self.end] = 30.0
        return logits
