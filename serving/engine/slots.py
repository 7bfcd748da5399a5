"""The engine's host side: slots, positions and masks around a graph that knows none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.engine.base import Logits
from serving.engine.cache import SlotCache

HIDDEN = np.float32(-1e9)  # e^-1e9 is 0; -inf would make NaN of a row that sees nothing


class GraphShape(Protocol):
    """What the host must know of a step graph."""

    @property
    def layers(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


class Runner(Protocol):
    """Runs the step graph; all that FastDeploy and onnxruntime differ in."""

    name: str

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[Logits, NDArray[np.float32]]:
        """Contiguous inputs by name → `logits [B,V]` and `new [2L,B,KV,S,D]`."""
        ...

    def close(self) -> None:
        """Give the graph's memory back."""
        ...


class SlotEngine:
    """An Engine over a Runner. See serving/engine/base.py for the methods."""

    def __init__(self, graph: GraphShape, runner: Runner, *, slots: int, max_length: int) -> None:
        self.name = runner.name
        self.slots = slots
        self.max_length = max_length
        self.vocab_size = graph.vocab_size
        self._runner = runner
        self._cache = SlotCache(
            layers=graph.layers,
            kv_heads=graph.kv_heads,
            head_dim=graph.head_dim,
            slots=slots,
            max_length=max_length,
        )
        blank = np.zeros((1, graph.kv_heads, 1, graph.head_dim), np.float32)
        # One hidden token, because not every backend accepts a cache of length 0.
        self._no_past = {f"c{i}": blank for i in range(2 * graph.layers)}

    def prefill(self, slot: int, ids: Sequence[int]) -> Logits:
        """Append ids `[S]` to a slot; logits `[V]` after the last."""
        self._check(slot)
        past, count = self._cache.length(slot), len(ids)
        if not 0 < count <= self.max_length - past:
            raise ValueError(f"{past} + {count} tokens do not fit into {self.max_length}")
        row = self._cache.occupy(slot)
        self._cache.reserve(past + count)
        caches = self._cache.views(row, row + 1) if past else self._no_past
        room = self._cache.capacity if past else 1
        seen = np.broadcast_to(np.arange(room) < past, (count, room))
        seen = np.concatenate([seen, np.tri(count, dtype=bool)], axis=1)
        positions = np.arange(past, past + count, dtype=np.int64)
        last = np.array([[0, count - 1]], np.int64)
        logits, new = self._step(
            np.array([ids], np.int64), positions[None], seen[None], last, caches
        )
        self._cache.append(slot, new[:, 0])
        last_logits: Logits = logits[0]
        return last_logits

    def decode(self, tokens: Mapping[int, int]) -> dict[int, Logits]:
        """Append one token to each slot in one step; slot → logits `[V]`."""
        if not tokens:
            return {}
        for slot in tokens:
            if not 0 < self._cache.length(slot) < self.max_length:
                raise ValueError(f"slot {slot} is empty or full")
        order = self._cache.front(list(tokens))
        lengths = np.array([[self._cache.length(slot)] for slot in order], np.int64)
        self._cache.reserve(int(lengths.max()) + 1)
        batch = len(order)
        seen = np.arange(self._cache.capacity + 1)[None] < lengths
        seen[:, -1] = True
        last = np.stack([np.arange(batch), np.zeros(batch, np.int64)], axis=1)
        ids = np.array([[tokens[slot]] for slot in order], np.int64)
        logits, new = self._step(ids, lengths, seen[:, None], last, self._cache.views(0, batch))
        for row, slot in enumerate(order):
            self._cache.append(slot, new[:, row])
        return {slot: logits[row] for row, slot in enumerate(order)}

    def release(self, slot: int) -> None:
        """Empty a slot."""
        self._cache.free(slot)

    def close(self) -> None:
        """Give the graph's memory back."""
        self._runner.close()

    def _step(
        self,
        ids: NDArray[np.int64],
        pos: NDArray[np.int64],
        seen: NDArray[np.bool_],
        last: NDArray[np.int64],
        caches: Mapping[str, NDArray[Any]],
    ) -> tuple[Logits, NDArray[np.float32]]:
        mask = np.where(seen, np.float32(0), HIDDEN)[:, None]
        return self._runner.run({"ids": ids, "pos": pos, "mask": mask, "last": last, **caches})

    def _check(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is not one of {self.slots}")
