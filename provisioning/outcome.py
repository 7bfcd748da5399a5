"""What became of each host: gathered from the events of a run, and why it failed in our words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from provisioning.ansible import Event

WAITING, OK, REFUSED, FAILED, UNREACHABLE = "waiting", "ok", "refused", "failed", "unreachable"
STOPPED = "stopped"

# Words of ssh or sudo, and of tasks → cause and what to do.
SUDO = re.compile(r"(?i)(sudo|become) password|password is required|Sorry, try again")
UNSPOKEN = ("", "non-zero return code", "MODULE FAILURE")
CONNECTION = (
    (
        r"Host key verification failed|REMOTE HOST IDENTIFICATION",
        "the host's ssh key is not the one known for it",
        "Compare the key at the host's console, then: ssh-keyscan -H ADDRESS >> ~/.ssh/known_hosts "
        "(ssh-keygen -R ADDRESS first, if an older one is there).",
    ),
    (
        r"Permission denied \((publickey|password)",
        "ssh refused the key or user",
        "Check ansible_user and your key: ssh USER@ADDRESS must work.",
    ),
    (
        r"[Ii]ncorrect (sudo|become|su) password|Sorry, try again",
        "sudo refused the password",
        "Give the right one with --ask-sudo-password or --sudo-password-file.",
    ),
    (
        r"[Mm]issing (sudo|become) password|a password is required",
        "sudo asks for a password",
        "Give it with --ask-sudo-password or --sudo-password-file.",
    ),
    (
        r"No route to host|Connection refused|Connection timed out|Connection reset"
        r"|timed out|Connection closed|Broken pipe|Shared connection|Timeout, server",
        "the host does not answer over ssh",
        "See that it is on and reachable; run the same command again to go on.",
    ),
)
TASKS = (
    (
        r"No space left on device|not enough free space|write error: disk full",
        "a disk is full",
        "Make room (df -h), then run again.",
    ),
    (
        r"(?s)^venv_serve: .*(No matching distribution|Could not find a version|Failed to build)",
        "FastDeploy 2 has no installable set of packages for this host's Python",
        "Go on without it: --set venv_serve_fastdeploy2=false. The run's log.txt has pip's words.",
    ),
    (
        r"Failed to update apt cache|Failed to fetch|Unable to fetch|Could not connect"
        r"|Connection failed|Cannot initiate the connection",
        "a package source does not answer",
        "See that it is up, or use a bundle (--from-bundle); run again to go on.",
    ),
    (
        r"Could not get lock|unable to acquire the dpkg",
        "another package manager is at work on the host",
        "Wait until it has ended, then run again.",
    ),
    (
        r"(?s)^firewall: .*(failed to validate|nft)",
        "nft refuses the firewall's rules; those in force were left alone",
        "Correct firewall_extra_rules and the networks named in firewall_*.",
    ),
    (
        r"expected time frame|exceeded the timeout|did not complete within|Timed out waiting",
        "a task ran out of its time",
        "Look at the host; --deadline gives more. Run again to go on.",
    ),
)


@dataclass
class RoleTimes:
    """How long a role took on a host, and how much it changed."""

    seconds: float = 0.0
    tasks: int = 0
    changed: int = 0


@dataclass
class HostOutcome:
    """One host's part of a run. `seconds` counts Ansible's tasks."""

    host: str
    profile: str
    status: str = WAITING
    cause: str = ""
    remedy: str = ""
    role: str = ""
    task: str = ""
    message: str = ""
    changed: int = 0
    rebooted: bool = False
    changes: list[str] = field(default_factory=list)
    roles: dict[str, RoleTimes] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Time of all roles together."""
        return sum(times.seconds for times in self.roles.values())

    @property
    def lost(self) -> bool:
        """Whether the host is out of the run."""
        return self.status in (REFUSED, FAILED, UNREACHABLE)

    def see(self, event: Event) -> None:
        """Take in one event of this host."""
        if event.kind == "start":
            self.role, self.task = event.role, event.task
            return
        if event.kind == "retry":
            return
        times = self.roles.setdefault(event.role or "facts", RoleTimes())
        times.seconds += event.seconds
        times.tasks += 1
        if event.kind == "changed":
            times.changed += 1
            self.changed += 1
            self.changes.append(f"{event.role}: {event.task}")
            self.rebooted |= bool(event.result.get("rebooted"))
        self.read_verdict(event)
        if event.kind in ("failed", "unreachable"):
            self.fail(event)

    def read_verdict(self, event: Event) -> None:
        """Keep what preflight and burn-in found."""
        verdicts = event.result.get("ansible_facts") or {}
        if "preflight_verdict" in verdicts:
            self.facts = dict(verdicts["preflight_verdict"]["facts"])
            self.add_findings("preflight", verdicts["preflight_verdict"]["findings"])
        if "burnin_verdict" in verdicts:
            self.figures = dict(verdicts["burnin_verdict"]["figures"])
            self.add_findings("burnin", verdicts["burnin_verdict"]["findings"])

    def add_findings(self, part: str, findings: list[Mapping[str, Any]]) -> None:
        """Replace what this part had found before."""
        kept = [f for f in self.findings if f["part"] != part]
        self.findings = [*kept, *({"part": part, **f} for f in findings)]

    def fail(self, event: Event) -> None:
        """The host is out: say why."""
        refused = event.role == "preflight" and event.kind == "failed" and bool(self.facts)
        self.status = UNREACHABLE if event.kind == "unreachable" else REFUSED if refused else FAILED
        self.role, self.task, self.message = event.role, event.task, event.message
        self.cause, self.remedy = explain(event)


def explain(event: Event) -> tuple[str, str]:
    """Cause of a failure and its remedy; the task's own last line where we know no better."""
    message = event.message
    if event.action in ("assert", "fail"):
        return message, ""
    known = (*CONNECTION, *TASKS) if event.kind == "unreachable" or SUDO.search(message) else TASKS
    for pattern, cause, remedy in known:
        if re.search(pattern, f"{event.role}: {message}"):
            return cause, remedy
    lines = [line.strip() for line in message.splitlines() if line.strip() not in UNSPOKEN]
    return (lines[-1] if lines else "it failed without a word"), "The run's log.txt has the rest."
