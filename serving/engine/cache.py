"""The keys and values of all slots, laid out so that a step reads them without a copy.

One array `[2L, rows, KV, T, D]`. Sequences in use fill the front rows, so the caches of the first
n rows are one contiguous view per layer. T is a bucket of the longest sequence and grows with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST_BUCKET = 64


def bucket(length: int, limit: int) -> int:
    """The capacity to hold `length` tokens: a multiple of 64, later of a quarter of the next lower
    power of two, so that padding is at most 64 tokens or a quarter; never above `limit`.
    """
    step = max(SMALLEST_BUCKET, (1 << (max(length, 1).bit_length() - 1)) // 4)
    return min(limit, -(-max(length, 1) // step) * step)


class SlotCache:
    """Rows of keys and values for `slots` sequences of at most `max_length` tokens, float32."""

    def __init__(
        self, *, layers: int, kv_heads: int, head_dim: int, slots: int, max_length: int
    ) -> None:
        self.max_length = max_length
        self._shape = (2 * layers, slots, kv_heads, head_dim)
        self._rows: list[int] = []  # row → slot
        self._lengths: dict[int, int] = {}
        self._store = self._blank(bucket(0, max_length))

    @property
    def capacity(self) -> int:
        """T, the length of each row in tokens."""
        return int(self._store.shape[3])

    def length(self, slot: int) -> int:
        """Tokens that a slot holds; 0 for an empty one."""
        return self._lengths.get(slot, 0)

    def occupy(self, slot: int) -> int:
        """The row of a slot, given one where it has none."""
        if slot not in self._lengths:
            self._rows.append(slot)
            self._lengths[slot] = 0
        return self._rows.index(slot)

    def front(self, slots: Sequence[int]) -> list[int]:
        """Bring these occupied slots into the first rows; returns them in the rows' order."""
        wanted, count = set(slots), len(slots)
        for row in range(count):
            if self._rows[row] not in wanted:
                other = next(r for r in range(count, len(self._rows)) if self._rows[r] in wanted)
                self._swap(row, other)
        return self._rows[:count]

    def reserve(self, length: int) -> None:
        """Make room for sequences of `length` tokens, and for all that are held already; give
        room back where less than half of it is needed."""
        needed = bucket(max(length, *self._lengths.values(), 0), self.max_length)
        if needed > self.capacity or needed * 2 <= self.capacity:
            keep = min(needed, self.capacity)
            grown = self._blank(needed)
            used = len(self._rows)
            grown[:, :used, :, :keep] = self._store[:, :used, :, :keep]
            self._store = grown

    def views(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        """The graph's cache inputs for rows first to last: `c{i}` → `[rows, KV, T, D]`, views."""
        return {f"c{i}": layer[first:last] for i, layer in enumerate(self._store)}

    def append(self, slot: int, new: NDArray[np.float32]) -> None:
        """Add new keys and values `[2L, KV, S, D]` to the end of a slot."""
        start = self._lengths[slot]
        end = start + new.shape[2]
        self._store[:, self._rows.index(slot), :, start:end] = new
        self._lengths[slot] = end

    def free(self, slot: int) -> None:
        """Empty a slot; the last row takes its place. The freed row is zeroed, for what a masked
        row holds is multiplied by 0, and NaN × 0 would spoil the next sequence."""
        if slot not in self._lengths:
            return
        row, last = self._rows.index(slot), len(self._rows) - 1
        mover = self._rows[last]
        dirty = max(self._lengths[slot], self._lengths[mover])
        self._store[:, row, :, :dirty] = self._store[:, last, :, :dirty]
        self._store[:, last, :, :dirty] = 0
        self._rows[row] = mover
        self._rows.pop()
        del self._lengths[slot]

    def _swap(self, a: int, b: int) -> None:
        used = max(self._lengths[self._rows[a]], self._lengths[self._rows[b]])
        self._store[:, [a, b], :, :used] = self._store[:, [b, a], :, :used]
        self._rows[a], self._rows[b] = self._rows[b], self._rows[a]

    def _blank(self, capacity: int) -> NDArray[np.float32]:
        layers, slots, heads, dim = self._shape
        return np.zeros((layers, slots, heads, capacity, dim), np.float32)
