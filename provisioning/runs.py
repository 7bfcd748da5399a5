"""Runs that were made: their folders, reports, history and what differs between two of them.

provision/runs/ID/report.json   what became of each host
provision/runs/ID/report.html   the same as a page
provision/runs/ID/log.txt       all that Ansible printed
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from appliance.errors import UserError
from appliance.files import read_json, write_json, write_text
from appliance.home import home
from provisioning.outcome import OK, HostOutcome


@dataclass
class Run:
    """One call of the command. `status`: ok, failed, refused, interrupted, or check."""

    id: str
    target: str
    begun: str
    status: str = "interrupted"
    seconds: float = 0.0
    check: bool = False
    source: str = "online"
    hosts: dict[str, HostOutcome] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return runs_folder() / self.id

    @property
    def log(self) -> Path:
        """All that Ansible printed."""
        return self.folder / "log.txt"

    def save(self) -> None:
        """Write both reports."""
        from provisioning.page import page

        data = dataclasses.asdict(self)
        for name, outcome in self.hosts.items():
            data["hosts"][name]["seconds"] = round(outcome.seconds, 1)
        write_json(self.folder / "report.json", data)
        write_text(self.folder / "report.html", page(data))


def runs_folder() -> Path:
    """The folder of all runs."""
    return home() / "provision" / "runs"


def new_run(target: str, *, check: bool, source: str) -> Run:
    """A run with a folder of its own, named by the time."""
    now = datetime.now(timezone.utc)
    stamp = now.strftime("%Y%m%d-%H%M%S")
    runs_folder().mkdir(parents=True, exist_ok=True)
    for number in range(100):
        name = stamp if number == 0 else f"{stamp}-{number}"
        try:
            os.mkdir(runs_folder() / name)
        except FileExistsError:
            continue
        return Run(name, target, now.isoformat(timespec="seconds"), check=check, source=source)
    raise UserError(f"{runs_folder()} has a hundred runs of this second")


def reports() -> list[dict[str, Any]]:
    """All runs' reports, oldest first."""
    paths = sorted(runs_folder().glob("*/report.json"))
    return [dict(read_json(path)) for path in paths]


def usual_seconds(host: str, profile: str) -> dict[str, float]:
    """Seconds by role of the last good run of this host, else of any host of its profile."""
    best: dict[str, float] = {}
    for report in reports():
        if report["check"]:
            continue
        for name, outcome in report["hosts"].items():
            if outcome["status"] == OK and outcome["profile"] == profile:
                best = {role: times["seconds"] for role, times in outcome["roles"].items()}
                if name == host:
                    continue
    return best


def compare(host: str) -> tuple[dict[str, Any], dict[str, Any], list[tuple[str, Any, Any]]]:
    """The last two runs of a host and what differs: name, before, after.

    Raises UserError where there are not two.
    """
    found = [r for r in reports() if host in r["hosts"] and r["hosts"][host]["facts"]]
    if len(found) < 2:
        raise UserError(
            f"{host} has {len(found)} run(s) with facts, and two are compared",
            hint="appliance provision history lists the runs.",
        )
    before, after = found[-2:]
    old, new = (dict(flatten(shown(r["hosts"][host]))) for r in (before, after))
    names = sorted(old.keys() | new.keys())
    differing = [(n, old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)]
    return before, after, differing


def shown(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """What of a host's outcome is worth comparing: not what differs with every run."""
    passing = ("clock", "ports", "unfinished", "disk_gib")
    facts = {name: value for name, value in outcome["facts"].items() if name not in passing}
    found = {f"{f['part']} {f['check']}": f["ok"] for f in outcome["findings"]}
    return {
        "status": outcome["status"],
        "facts": facts,
        "figures": outcome["figures"],
        "findings": found,
    }


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`a.b.0` → leaf for each leaf of nested objects and lists."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from flatten(inner, f"{prefix}.{number}")
    else:
        yield prefix, value
