"""The tables of `appliance ps`."""

from __future__ import annotations

import time

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from appliance.jobs import ask
from appliance.jobs.rows import Deployment, Job, StageRow
from appliance.jobs.store import Store
from appliance.jobs.words import clock

COLOURS = {
    "running": "green",
    "succeeded": "green",
    "starting": "cyan",
    "queued": "cyan",
    "interrupted": "yellow",
    "failed": "red",
    "gone": "red",
}
DAY = 86400.0


def ps(console: Console, *, all_: bool = False) -> None:
    """Show jobs that are not finished and deployments that should be up; with `all_` the rest."""
    store = Store()
    store.reap()
    jobs = [j for j in store.jobs() if all_ or j.status not in ("succeeded", "cancelled")]
    deployments = [d for d in store.deployments() if all_ or d.status in ("starting", "running")]
    if jobs:
        console.print(job_table(store, jobs))
    if deployments:
        console.print(deployment_table(deployments))
    if not jobs and not deployments:
        rest = "" if all_ else "; `appliance ps --all` shows finished jobs"
        console.print(f"No job is unfinished and nothing is served{rest}.", highlight=False)


def job_table(store: Store, jobs: list[Job]) -> Table:
    """Jobs, the newest first."""
    table = plain_table("JOB", "STATUS", "STAGE", "AGE", "REASON")
    for job in jobs:
        reason = Text(job.reason, overflow="ellipsis", no_wrap=True)
        stage = reached(store.stages(job.id))
        table.add_row(job.id, state(job.status), stage, age(job.created), reason)
    return table


def deployment_table(deployments: list[Deployment]) -> Table:
    """Deployments by name."""
    table = plain_table("DEPLOYMENT", "STATUS", "REST", "GRPC", "SINCE", "JOB")
    for d in deployments:
        gone = d.status in ("starting", "running") and not d.lives
        status = state("gone" if gone else d.status)
        rest = ask.rest_address(d).removeprefix("http://")
        table.add_row(d.name, status, rest, ask.grpc_address(d), age(d.updated), d.job)
    return table


def plain_table(*columns: str) -> Table:
    """A table without lines."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column in ("JOB", "STATUS", "AGE", "SINCE"))
    return table


def state(status: str) -> Text:
    """A status in its colour."""
    return Text(status, style=COLOURS.get(status, ""))


def reached(stages: list[StageRow]) -> str:
    """The stage that a job is in, or was in last."""
    begun = [stage.name for stage in stages if stage.status != "waiting"]
    return f"{begun[-1]} ({len(begun)}/{len(stages)})" if begun else "–"


def age(since: float) -> str:
    """How long ago."""
    seconds = max(0.0, time.time() - since)
    return f"{seconds / DAY:.0f} d" if seconds >= 2 * DAY else clock(seconds)
