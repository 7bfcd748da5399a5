"""What `up` shows: on a terminal a list of stages with a progress bar, elsewhere plain lines.

Whatever is shown is in the job's log too, a line each with its time.
"""

from __future__ import annotations

import contextlib
import io
import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from appliance.jobs.follow import Log
from appliance.jobs.tables import table
from appliance.jobs.terminal import no_control_echo
from appliance.jobs.words import clean, clock, figure

PLAIN_SECONDS = 10.0  # between two progress lines where there is no terminal, and in the log
LOG_WIDTH = 100  # columns of a table in the log

FIGURES = {  # metrics that stages say, in words
    "eval_loss": "held-out loss",
    "loss_before": "held-out loss before training",
    "loss_after": "held-out loss after training",
}
MARKS = {"done": ("✓", "green"), "failed": ("✗", "red"), "stopped": ("■", "yellow")}


@dataclass
class Line:
    """One stage as it is shown. `began` and `ended` in seconds of the monotonic clock."""

    name: str
    state: str = "waiting"
    text: str = ""
    began: float | None = None
    ended: float | None = None
    done: float = 0
    total: float = 0
    at: str = ""  # how far it is: "step 3/40"
    left: float | None = None  # seconds, as far as one can tell
    figures: str = ""  # the last one that came with a step: "held-out loss 2.75"
    first: tuple[float, float] | None = None  # when the first progress came, and how far it was

    def elapsed(self) -> str:
        """How long it has run, as m:ss."""
        if self.began is None:
            return ""
        return clock((self.ended or time.monotonic()) - self.began)


@dataclass
class Display:
    """Shows one run of a job on a console, and writes its log."""

    title: str
    stages: list[str]
    log: Log
    console: Console
    lines: dict[str, Line] = field(init=False)
    live: Live | None = field(init=False, default=None)
    spinner: Spinner = field(init=False, default_factory=lambda: Spinner("dots", style="cyan"))
    quiet: contextlib.ExitStack = field(init=False, default_factory=contextlib.ExitStack)
    said: float = field(init=False, default=0.0)
    metrics: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.lines = {name: Line(name) for name in self.stages}

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.quiet.enter_context(no_control_echo(self.console))
            self.live = Live(console=self.console, get_renderable=self.render, refresh_per_second=8)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
        self.quiet.close()

    # --- what the controller tells it ---------------------------------------------------------

    def say(self, text: str, style: str = "") -> None:
        """One line, or a few, for the reader."""
        text = clean(text)
        self.log.write(text)
        self._show(Text(text, style=style))

    def start(self, name: str) -> None:
        """A stage begins."""
        self.lines[name] = Line(name, "running", "starting", began=time.monotonic())
        self.said = 0.0
        self._news(f"{name}: started")

    def end(self, name: str, state: str, text: str) -> None:
        """A stage ends: `done`, `failed` or `stopped`."""
        line = self.lines[name]
        if state != "done" and line.at:
            text += f" at {line.at}"
        line.state, line.text = state, text
        line.ended = time.monotonic() if line.began is not None else None
        took = f" ({line.elapsed()})" if line.began is not None else ""
        self._news(f"{name}: {text}{took}")

    def event(self, event: dict[str, Any]) -> None:
        """One event of a stage, as `events.py` describes them. Errors are the controller's."""
        name = str(event.get("stage", ""))
        kind = event.get("kind")
        if kind == "progress":
            self._progress(self.lines[name], event)
        elif kind == "metric":
            self._metric(self.lines[name], event)
        elif kind == "note":
            self.say(f"{name}: {event['text']}")
        elif kind == "warning":
            self.say(f"{name}: warning: {event['text']}", style="yellow")
        elif kind == "table":
            self._table(event)

    def output(self, name: str, text: str) -> None:
        """One line that a stage's program printed: for the log alone."""
        self.log.write(f"{name} | {clean(text)}")

    # --- how it shows it ----------------------------------------------------------------------

    def _show(self, *shown: RenderableType) -> None:
        """Print; a terminal that is gone (EIO) is no reason to stop."""
        try:
            for one in shown:
                self.console.print(one, soft_wrap=self.live is None and isinstance(one, Text))
        except OSError as error:
            self.console.quiet = True
            self.log.write(f"nothing can be shown any more: {error}")

    def _news(self, text: str) -> None:
        """A change that the list of stages shows by itself on a terminal."""
        if self.live is None:
            self.say(text)
        else:
            self.log.write(text)

    def _progress(self, line: Line, event: dict[str, Any]) -> None:
        now = time.monotonic()
        line.done, line.total = float(event["done"]), float(event["total"])
        line.first = line.first or (now, line.done)
        line.left = seconds_left(line, event, now)
        line.at = position(event)
        line.text = summary(event, line.figures)
        if now - self.said >= PLAIN_SECONDS or line.done >= line.total:
            self.said = now
            left = "" if line.left is None else f" · {clock(line.left)} left"
            self._news(f"{line.name}: {summary(event)}{left}")

    def _metric(self, line: Line, event: dict[str, Any]) -> None:
        """A figure; one of many, with its step, is shown now and then, and is all in the log."""
        words = FIGURES.get(event["name"], event["name"])
        said = f"{words} {figure(float(event['value']))}"
        if (step := event.get("step")) is None:
            self.say(f"{line.name}: {said}")
            return
        line.figures = said
        text, now = f"{line.name}: {said} at step {step:,}", time.monotonic()
        if now - self.metrics.get(words, -PLAIN_SECONDS) < PLAIN_SECONDS:
            self.log.write(text)
        else:
            self.metrics[words] = now
            self._news(text)

    def _table(self, event: dict[str, Any]) -> None:
        title = Text(clean(str(event["title"])), style="bold")
        columns, rows = event["columns"], event["rows"]
        self._show(title, table(columns, rows, self.console.width))
        page = Console(file=io.StringIO(), width=LOG_WIDTH, color_system=None)
        with page.capture() as text:
            page.print(title, table(columns, rows, LOG_WIDTH), sep="\n")
        self.log.write(text.get())

    def render(self) -> RenderableType:
        """The list of stages with the running one's bar, for a terminal."""
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=1)
        grid.add_column(width=max(map(len, self.stages)))
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        grid.add_column(justify="right", min_width=5, no_wrap=True)
        bars: list[RenderableType] = []
        for line in self.lines.values():
            if line.state == "running":
                icon: RenderableType = self.spinner
                if line.total:
                    bars = [progress_bar(line)]
            else:
                mark, colour = MARKS.get(line.state, ("·", "dim"))
                icon = Text(mark, style=colour)
            style = {"running": "bold", "waiting": "dim"}.get(line.state, "")
            grid.add_row(icon, Text(line.name, style=style), Text(line.text), line.elapsed())
        return Group(Text(self.title, style="bold"), grid, *bars)


def progress_bar(line: Line) -> RenderableType:
    """How far the running stage is, and how long it will go on."""
    left = "" if line.left is None else f"{clock(line.left)} left"
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(ProgressBar(total=line.total, completed=line.done), left)
    return grid


def position(event: dict[str, Any]) -> str:
    """How far a progress event is: `step 3/40`."""
    return f"{event['unit']} {event['done']:,}/{event['total']:,}"


def summary(event: dict[str, Any], figures: str = "") -> str:
    """A progress event in one line: `step 3/40 · loss 2.5 · 812 tokens/s`."""
    parts = [position(event)]
    if (loss := event.get("loss")) is not None:
        parts.append(f"loss {loss:.4g}")
    if figures:
        parts.append(figures)
    if (speed := event.get("tokens_per_second")) is not None:
        parts.append(f"{speed:,.0f} tokens/s")
    return " · ".join(parts)


def seconds_left(line: Line, event: dict[str, Any], now: float) -> float | None:
    """What the stage says, else what its pace so far tells; None where nothing does."""
    if line.first is None or line.done >= line.total:
        return None
    if (said := event.get("seconds_left")) is not None:
        return float(said)
    began, first = line.first
    if line.done <= first or now - began < 1.0:
        return None
    return (now - began) * (line.total - line.done) / (line.done - first)
