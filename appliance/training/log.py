"""What training says while it works: log.jsonl, VisualDL scalars, events, and a sign of life.

{"step": 5, "loss": 2.31, "learning_rate": 0.001, "tokens_per_second": 210.4}
{"step": 20, "eval_loss": 2.05}
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from appliance.files import write_text
from appliance.jobs.events import Events

TAGS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "tokens_per_second": "train/tokens_per_second",
    "eval_loss": "eval/loss",
}
"""VisualDL's names of the figures."""


class Log:
    """Appends lines to `folder`/log.jsonl and scalars to `folder`/visualdl/."""

    def __init__(self, folder: Path, events: Events, *, step: int) -> None:
        """Go on behind `step`: later lines, which a run that was cut short left, are dropped."""
        from visualdl import LogWriter

        self.path = folder / "log.jsonl"
        self.events = events
        kept = [line for line in read_log(self.path) if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        shutil.rmtree(folder / "visualdl", ignore_errors=True)
        self.scalars = LogWriter(str(folder / "visualdl"))
        for line in kept:
            self._draw(line)

    def line(self, step: int, **figures: float) -> None:
        """One line: to the log, to VisualDL, and a held-out loss as a metric to the events."""
        entry = {"step": step, **figures}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        self._draw(entry)
        if "eval_loss" in figures:
            self.events.metric("eval_loss", figures["eval_loss"], step=step)

    def close(self) -> None:
        """Bring the scalars to the disk."""
        self.scalars.close()

    def _draw(self, line: dict[str, Any]) -> None:
        for name, tag in TAGS.items():
            if name in line:
                self.scalars.add_scalar(tag, line[name], line["step"])


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl, without a last one that a kill cut short; none without a file."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
