"""Text as it grows: stop strings are held back until they are certain, and never shown."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Cuts growing text before the first stop string.

    Text that may be the beginning of a stop string is held back until more text decides, so no
    part of a stop string is ever given out, wherever the pieces are cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        """Whether a stop string was met; everything after it is dropped."""

    def push(self, piece: str) -> str:
        """Take the next piece; return what may be shown now."""
        if self.stopped:
            return ""
        text = self._held + piece
        cut = min((at for s in self._stops if (at := text.find(s)) >= 0), default=-1)
        if cut >= 0:
            self.stopped = True
            self._held = ""
            return text[:cut]
        keep = max((_overlap(text, s) for s in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text ended: return what was held back, for it became no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
