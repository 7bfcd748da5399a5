"""Shows what a running stage says and prints, and says aloud when it is silent for long."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from appliance.jobs.follow import Follower
from appliance.jobs.live import Display
from appliance.jobs.words import clock

STALL_SECONDS = 300.0  # of silence before it is said aloud; then twice as long, and so on
KEPT_LINES = 200


class Watch:
    """Follows one stage's events and output from the moment it is made."""

    def __init__(self, name: str, display: Display, events: Path, output: Path) -> None:
        self.name = name
        self.display = display
        self.error: dict[str, Any] | None = None
        self.printed: list[str] = []
        self._events = Follower(events, from_end=True)
        self._output = Follower(output, from_end=True)
        self._heard = time.monotonic()
        self._patience = STALL_SECONDS

    def read(self) -> None:
        """Show what is new. `error` is the stage's last event of that kind, `printed` its lines."""
        printed, said = self._output.lines(), self._events.lines()
        for line in printed:
            self.display.output(self.name, line)
        self.printed = (self.printed + printed)[-KEPT_LINES:]
        for line in said:
            event = json.loads(line)
            if event.get("kind") == "error":
                self.error = event
            else:
                self.display.event(event)
        if printed or said:
            self._heard, self._patience = time.monotonic(), STALL_SECONDS
        elif time.monotonic() - self._heard > self._patience:
            silent = clock(time.monotonic() - self._heard)
            self.display.say(f"{self.name}: warning: no sign of life for {silent}", "yellow")
            self._patience *= 2
