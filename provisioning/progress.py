"""Progress of a run: a live table on a terminal, a line for each new role elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from provisioning.ansible import Event
from provisioning.outcome import HostOutcome
from provisioning.steps import HostPlan


class Progress:
    """A context manager that is told events and shows where each host is, and how long yet."""

    def __init__(
        self,
        console: Console,
        outcomes: Mapping[str, HostOutcome],
        plans: Mapping[str, HostPlan] | None = None,
    ) -> None:
        self.console = console
        self.outcomes = outcomes
        self.plans = plans or {}
        self.begun = time.monotonic()
        self.entered = dict.fromkeys(outcomes, self.begun)
        self.roles = dict.fromkeys(outcomes, "")
        self.live: Live | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live = Live(get_renderable=self.table, console=self.console, refresh_per_second=4)
            self.live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            self.live.__exit__(kind, error, trace)

    def see(self, event: Event) -> None:
        """Take in one event, after the outcomes have."""
        host = event.host
        if event.kind == "start" and event.role and self.is_further(host, event.role):
            self.roles[host], self.entered[host] = event.role, time.monotonic()
            if not self.live:
                spent = time.monotonic() - self.begun
                self.console.print(
                    f"{spent:6.0f} s  {host}  {event.role}{self.left_words(host)}", highlight=False
                )
        lost = self.outcomes[host]
        if event.kind in ("failed", "unreachable") and not self.live:
            self.console.print(f"        {host}  {lost.status}: {lost.cause}", highlight=False)

    def is_further(self, host: str, role: str) -> bool:
        """Whether a role comes after where the host is; handlers run late, under their own role."""
        plan = self.plans.get(host)
        names = [step.role for step in plan.steps] if plan else []
        if names and role not in names:
            return False
        if role not in names or self.roles[host] not in names:
            return role != self.roles[host]
        return names.index(role) > names.index(self.roles[host])

    def left(self, host: str) -> float | None:
        """Seconds that a host still needs, about; None where no plan tells."""
        plan = self.plans.get(host)
        names = [step.role for step in plan.steps] if plan else []
        if not plan or self.roles[host] not in names:
            return None
        at = names.index(self.roles[host])
        rest = sum(step.seconds for step in plan.steps[at + 1 :])
        return rest + max(plan.steps[at].seconds - (time.monotonic() - self.entered[host]), 0)

    def left_words(self, host: str) -> str:
        """The same in words."""
        left = self.left(host)
        return "" if left is None else f"  about {duration(left)} left"

    def table(self) -> Table:
        """All hosts: where they are, what they changed, time left."""
        table = Table(box=None, pad_edge=False)
        for column in ("host", "role", "task", "changed", "time left"):
            table.add_column(column, no_wrap=column != "task")
        for host, outcome in self.outcomes.items():
            left = self.left(host)
            words = outcome.cause if outcome.lost else outcome.task
            shown = outcome.status if outcome.lost else duration(left) if left is not None else ""
            table.add_row(host, outcome.role, words[:60], str(outcome.changed), shown)
        return table


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min"
