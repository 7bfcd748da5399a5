"""What the scheduler asks of an engine: token ids in, logits out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


class Engine(Protocol):
    """A model with room for `slots` sequences of at most `max_length` tokens each.

    Not thread-safe: one thread owns it.
    """

    name: str
    slots: int
    max_length: int
    vocab_size: int

    def prefill(self, slot: int, ids: Sequence[int]) -> Logits:
        """Append ids to a slot's sequence; logits `[V]` after the last. A long prompt may come
        in several calls. Raises ValueError where the sequence would exceed max_length."""
        ...

    def decode(self, tokens: Mapping[int, int]) -> dict[int, Logits]:
        """Append one token to each named slot, all in one step; slot → logits `[V]`.

        The logits may be views that the next call overwrites."""
        ...

    def release(self, slot: int) -> None:
        """Empty a slot for the next sequence; an empty one stays empty."""
        ...

    def close(self) -> None:
        """Give back threads and memory; the engine is not used afterwards."""
        ...
