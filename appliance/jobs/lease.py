"""A controller's hold on its job: the heartbeat that keeps the lease, and the signals that stop."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from types import FrameType
from typing import Any

from appliance.errors import Interrupted, JobError
from appliance.jobs.rows import Lease
from appliance.jobs.store import Store, lost

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Cancelled(Interrupted):
    """The job was cancelled through the store."""


class Heartbeat:
    """Renews a lease from a thread of its own; `check` raises when the work must stop."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self.store = store
        self.lease = lease
        self._error: JobError | None = None
        self._cancelled = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def check(self) -> None:
        """Raise JobError where the lease is lost, Cancelled where a cancel was asked for."""
        if self._error is not None:
            raise self._error
        if self._cancelled:
            raise Cancelled(f"{self.lease.job} is cancelled")

    def _beat(self) -> None:
        interval = self.store.lease_seconds / 15
        held_until = time.monotonic() + self.store.lease_seconds
        while not self._done.wait(interval):
            asked = time.monotonic()
            try:
                self._cancelled = self.store.renew(self.lease)
                held_until = asked + self.store.lease_seconds
            except JobError as error:
                self._error = error
                return
            except sqlite3.Error:  # busy, or the disk is full: there is time until it runs out
                if time.monotonic() > held_until:
                    self._error = lost(self.lease)
                    return


class Signals:
    """Notes Ctrl-C, SIGTERM and SIGHUP instead of dying from them."""

    def __init__(self) -> None:
        self.count = 0
        self._last = ""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._last = signal.Signals(number).name

    def check(self) -> None:
        """Raise Interrupted where a signal came."""
        if self.count:
            name = "Ctrl-C" if self._last == "SIGINT" else self._last
            raise Interrupted(f"stopped by {name}")
