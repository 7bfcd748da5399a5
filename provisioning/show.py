"""What people see on the terminal: verdicts, plans, reports, history, differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from provisioning.outcome import HostOutcome
from provisioning.progress import duration
from provisioning.runs import Run, compare, reports
from provisioning.steps import HostPlan

COLOURS = {"ok": "green", "stopped": "yellow", "waiting": "yellow"}


def preflight(run: Run, console: Console) -> None:
    """What preflight found that is not as it should be."""
    for host, outcome in run.hosts.items():
        if outcome.lost:
            console.print(f"[red]{host}: {outcome.status}[/red]", highlight=False)
            if not outcome.findings:
                words(console, f"  {outcome.cause}")
                words(console, f"  {outcome.remedy}")
        else:
            console.print(f"[green]{host}: fit[/green]", highlight=False)
        for finding in outcome.findings:
            if finding["part"] == "preflight" and not finding["ok"]:
                words(console, f"  {finding['level']}: {finding['message']}")


def plans(planned: Mapping[str, HostPlan], source: str, console: Console) -> None:
    """What will change on each host."""
    for host, plan in planned.items():
        table = Table(
            title=f"plan for {host} (packages from {source})", title_justify="left", box=None
        )
        for column in ("role", "what will change", "about"):
            table.add_column(column)
        for step in plan.steps:
            if step.changes:
                table.add_row(step.role, escape(step.changes), duration(step.seconds))
        console.print(table)
        reboot = "one reboot" if plan.reboot else "no reboot"
        size = f"{plan.mib:.0f} MiB to copy or download" if plan.mib >= 1 else "nothing to download"
        console.print(f"{host}: {reboot}, {size}, about {duration(plan.seconds)}", highlight=False)


def report(run: Run, console: Console) -> None:
    """What became of each host."""
    console.print()
    for host, outcome in run.hosts.items():
        colour = COLOURS.get(outcome.status, "red")
        done = "would change" if run.check else "changed"
        line = f"[{colour}]{host}: {outcome.status}[/{colour}], {outcome.changed} {done}"
        console.print(line + extras(outcome), highlight=False)
        if outcome.lost or outcome.cause:
            words(console, f"  {outcome.role}: {outcome.task}")
            words(console, f"  {outcome.cause}")
            words(console, f"  {outcome.remedy}")
        for change in outcome.changes if run.check else ():
            words(console, f"  {change}")
    state = {"check": "nothing was changed"}.get(run.status, run.status)
    console.print(f"{state} after {duration(run.seconds)}", highlight=False)
    words(console, f"report: {run.folder / 'report.html'} (and .json, log.txt)")


def words(console: Console, text: str) -> None:
    """A line as it is: no markup, no wrapping that would break what is to be pasted."""
    if text.strip():
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def extras(outcome: HostOutcome) -> str:
    """Reboot, engine and bandwidth, where there is something to say."""
    parts = ["rebooted once"] if outcome.rebooted else []
    if engine := outcome.figures.get("engine"):
        parts.append(f"serves with {engine}")
    if speed := outcome.figures.get("busbw_gbps"):
        parts.append(f"all_reduce {speed} GB/s")
    return "".join(f", {part}" for part in parts)


def history(console: Console) -> None:
    """All runs, oldest first."""
    table = Table(box=None)
    for column in ("run", "target", "status", "hosts", "changed", "time"):
        table.add_column(column)
    for run in reports():
        hosts = ", ".join(f"{name} {host['status']}" for name, host in run["hosts"].items())
        changed = sum(host["changed"] for host in run["hosts"].values())
        row: list[Any] = [run["id"], run["target"], run["status"], hosts, changed]
        table.add_row(*map(str, row), duration(run["seconds"]))
    console.print(table)


def difference(host: str, console: Console) -> None:
    """What differs between a host's last two runs."""
    before, after, differing = compare(host)
    console.print(f"{host}: {before['id']} → {after['id']}", highlight=False)
    if not differing:
        console.print("nothing differs")
    for name, old, new in differing:
        words(
            console,
            f"  {name}: {old if old not in (None, '') else '-'} → "
            f"{new if new not in (None, '') else '-'}",
        )
