"""What a stage says while it works: one JSON object a line, appended to the job's events.jsonl.

Kinds and their fields, besides `time` (seconds since the epoch) and `stage`:

    progress  done, total, unit, and where known loss, tokens_per_second, seconds_left
    metric    name, value, and where there are many of it step
    note      text
    warning   text
    table     title, columns, rows
    error     type, message, hint: the stage ends with this error; nothing follows
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError


class Events:
    """Appends events of one stage to a file. Each line is written by one `write` call."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.stage = stage
        path.parent.mkdir(parents=True, exist_ok=True)

    def emit(self, kind: str, **fields: Any) -> None:
        """Append one event."""
        event = {"time": time.time(), "stage": self.stage, "kind": kind, **fields}
        line = json.dumps(event, ensure_ascii=False, default=str) + "\n"
        with self.path.open("ab", buffering=0) as stream:
            stream.write(line.encode())

    def progress(self, done: int, total: int, unit: str, **fields: float) -> None:
        """How far the stage is."""
        self.emit("progress", done=done, total=total, unit=unit, **fields)

    def metric(self, name: str, value: float, *, step: int | None = None) -> None:
        """One figure that is worth keeping; `step` where it is measured again and again."""
        self.emit("metric", name=name, value=value, **({} if step is None else {"step": step}))

    def note(self, text: str) -> None:
        """One line for the reader."""
        self.emit("note", text=text)

    def warning(self, text: str) -> None:
        """One line that the reader should not miss."""
        self.emit("warning", text=text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A small table for the reader."""
        self.emit("table", title=title, columns=list(columns), rows=[list(r) for r in rows])

    def error(self, error: ApplianceError) -> None:
        """Why the stage ends; the controller shows it as it stands."""
        self.emit("error", type=type(error).__name__, message=error.message, hint=error.hint)
