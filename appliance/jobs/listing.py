"""The tables of `appliance ps`."""

from __future__ import annotations

import time

from rich.console import Console
from rich.text import Text

from appliance.jobs import ask
from appliance.jobs.rows import Deployment, Job, StageRow
from appliance.jobs.store import Store
from appliance.jobs.words import clean

COLOURS = {
    "running": "green",
    "succeeded": "green",
    "starting": "cyan",
    "queued": "cyan",
    "interrupted": "yellow",
    "failed": "red",
    "gone": "red",
}


def ps(console: Console, *, all_: bool = False) -> None:
    """Show jobs that are not finished and deployments that should be up; with `all_` the rest."""
    store = Store()
    store.reap()
    jobs = [j for j in store.jobs() if all_ or j.status not in ("succeeded", "cancelled")]
    deployments = [d for d in store.deployments() if all_ or d.status in ("starting", "running")]
    if jobs:
        show(console, ["JOB", "STATUS", "STAGE", "AGE", "REASON"], job_rows(store, jobs))
    if jobs and deployments:
        console.print()
    if deployments:
        columns = ["DEPLOYMENT", "STATUS", "REST", "GRPC", "SINCE", "JOB"]
        show(console, columns, deployment_rows(deployments))
    if not jobs and not deployments:
        rest = "" if all_ else "; `appliance ps --all` shows finished jobs"
        console.print(f"No job is unfinished and nothing is served{rest}.", soft_wrap=True)


def job_rows(store: Store, jobs: list[Job]) -> list[list[str]]:
    """Jobs, the newest first."""
    return [
        [j.id, j.status, reached(store.stages(j.id)), age(j.created), clean(j.reason)] for j in jobs
    ]


def deployment_rows(deployments: list[Deployment]) -> list[list[str]]:
    """Deployments by name."""
    return [
        [
            d.name,
            "gone" if d.status in ("starting", "running") and not d.lives else d.status,
            ask.rest_address(d).removeprefix("http://"),
            ask.grpc_address(d),
            age(d.updated),
            d.job,
        ]
        for d in deployments
    ]


def show(console: Console, columns: list[str], rows: list[list[str]]) -> None:
    """A line a row, columns below each other. A terminal cuts the last one at its width."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for number, row in enumerate([columns, *rows]):
        line = Text(style="bold" if number == 0 else "")
        for cell, width in zip(row, widths, strict=True):
            line.append(cell.ljust(width + 3), style=COLOURS.get(cell, ""))
        line.rstrip()
        if console.is_terminal:
            console.print(line, no_wrap=True, overflow="ellipsis")
        else:
            console.print(line, soft_wrap=True)


def reached(stages: list[StageRow]) -> str:
    """The stage that a job is in, or was in last."""
    begun = [stage.name for stage in stages if stage.status != "waiting"]
    return f"{begun[-1]} ({len(begun)}/{len(stages)})" if begun else "–"


def age(since: float) -> str:
    """How long ago, in the largest unit of which there are two."""
    seconds = max(0.0, time.time() - since)
    for name, unit in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{seconds:.0f} s"
