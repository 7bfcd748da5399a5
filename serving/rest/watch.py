"""Ends the answers of clients that went away."""

from __future__ import annotations

import threading
from collections.abc import Callable

from serving.core import Answer

INTERVAL = 0.1
"""Seconds between two looks."""


class Watch:
    """One thread that looks whether the clients of running answers are still there.

    A WSGI thread learns that its client went away only when it writes; while a request waits for
    a slot or a long prompt is read, nothing is written.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: list[tuple[Callable[[], bool], Answer]] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def add(self, gone: Callable[[], bool], answer: Answer) -> None:
        """Cancel `answer` as soon as `gone()` says so."""
        with self._lock:
            self._watched.append((gone, answer))

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(INTERVAL):
            with self._lock:
                lost = [answer for gone, answer in self._watched if gone()]
                self._watched = [(g, a) for g, a in self._watched if not a.done and a not in lost]
            for answer in lost:
                answer.cancel()
