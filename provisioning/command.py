"""`appliance provision`: preflight, the plan shown, confirmation, converge, report."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from appliance.errors import UserError
from provisioning import ansible, show, source, steps
from provisioning.ansible import Event, Limits
from provisioning.outcome import OK, STOPPED, WAITING, HostOutcome
from provisioning.progress import Progress
from provisioning.runs import Run, new_run, usual_seconds
from provisioning.targets import Target, read_targets

PREFLIGHT_SECONDS = 300


@dataclass(frozen=True)
class Options:
    """What the command line says. `deadline` in minutes, of the whole run."""

    profile: str | None = None
    settings: Sequence[str] = ()
    limit: Sequence[str] = ()
    yes: bool = False
    check: bool = False
    reboot: bool = True
    rollback: bool = False
    bundle: Path | None = None
    mirror: str | None = None
    sudo_password_file: Path | None = None
    ask_sudo_password: bool = False
    deadline: float = 240.0


@dataclass
class Work:
    """What the parts of one run share."""

    console: Console
    options: Options
    targets: list[Target]
    source: source.Source
    run: Run
    password_file: Path | None
    stop: Callable[[], bool]
    plans: dict[str, steps.HostPlan] = field(default_factory=dict)


def provision(where: str, options: Options, console: Console) -> int:
    """Provision the hosts of an inventory or address. Returns the exit code: 0 where all are well,
    1 where some host is not, 130 where it was interrupted. Raises UserError for bad input."""
    targets = read_targets(where, options.profile, options.settings, options.limit)
    if options.bundle and options.mirror:
        raise UserError("--from-bundle and --mirror exclude each other")
    with tempfile.TemporaryDirectory(prefix="provision-") as scratch, stopping() as stop:
        chosen = choose_source(options, Path(scratch), console)
        source.require(chosen, targets)
        password = sudo_password(options, Path(scratch))
        run = new_run(where, check=options.check, source=chosen.name)
        run.hosts = {t.name: HostOutcome(t.name, t.profile) for t in targets}
        work = Work(console, options, targets, chosen, run, password, stop)
        begun = time.monotonic()
        try:
            converge(work)
        finally:
            run.seconds = round(time.monotonic() - begun, 1)
            run.status = final_status(run, interrupted=stop())
            run.save()
    show.report(run, console)
    return 130 if run.status == "interrupted" else 0 if run.status in (OK, "check") else 1


def converge(work: Work) -> None:
    """All steps on all hosts; each host's outcome is in the run."""
    play(work, "preflight.yml", work.targets, "looking at the hosts", PREFLIGHT_SECONDS)
    fit = [
        t for t in work.targets if not work.run.hosts[t.name].lost and work.run.hosts[t.name].facts
    ]
    show.preflight(work.run, work.console)
    if work.stop() or not fit:
        return
    if work.options.rollback:
        fit = [turned for target in fit if (turned := turn_back(work, target))]
    work.plans = {t.name: plan(work, t) for t in fit}
    show.plans(work.plans, work.source.name, work.console)
    if not work.options.yes and not work.options.check and not agreed(work.console):
        for target in fit:
            work.run.hosts[target.name].status = STOPPED
        return
    title = "what would change" if work.options.check else "converging"
    play(work, "site.yml", fit, title, work.options.deadline * 60)
    for target in fit:
        outcome = work.run.hosts[target.name]
        if not outcome.lost and not work.stop() and outcome.status == WAITING:
            outcome.status = OK


def play(work: Work, playbook: str, targets: Sequence[Target], title: str, seconds: float) -> None:
    """One playbook over some hosts, with progress."""
    outcomes = {t.name: work.run.hosts[t.name] for t in targets}
    for outcome in outcomes.values():
        outcome.roles.clear()
    progress = Progress(work.console, outcomes, work.plans)

    def see(event: Event) -> None:
        if event.host in outcomes:
            outcomes[event.host].see(event)
            progress.see(event)

    work.console.print(f"[bold]{title}[/bold]")
    with progress:
        status = ansible.play(
            playbook,
            targets,
            see,
            work.run.log,
            extra=extra_variables(work),
            limits=Limits(run=seconds, cancelled=work.stop),
            check=work.options.check and playbook == "site.yml",
            password_file=work.password_file,
        )
    if status == "timeout":
        late(outcomes.values(), seconds)
    elif status == "failed" and not any(outcome.lost for outcome in outcomes.values()):
        words = work.run.log.read_text(encoding="utf-8")[-1500:] if work.run.log.exists() else ""
        raise UserError(f"Ansible did not run: {words.strip()}")


def late(outcomes: Any, seconds: float) -> None:
    """The run was ended by its deadline: say where each host was."""
    for outcome in outcomes:
        if not outcome.lost and outcome.status == WAITING:
            outcome.status = "failed"
            outcome.cause = f"the run's deadline of {seconds / 60:.0f} min passed in this task"
            outcome.remedy = (
                "Look at the host, or give --deadline more minutes; run again to go on."
            )


def turn_back(work: Work, target: Target) -> Target | None:
    """The target with the pins that its host had before; None, with its outcome, if it has none."""
    outcome = work.run.hosts[target.name]
    previous = outcome.facts.get("ours", {}).get("previous")
    if not previous:
        outcome.status, outcome.role, outcome.task = "refused", "rollback", "take the previous pins"
        outcome.cause = "the host has no earlier pins to go back to"
        outcome.remedy = "Only a host that was provisioned with two sets of pins has."
        return None
    pins = {
        "rollback_train": previous["train"],
        "rollback_serve": previous.get("serve", ""),
        "rollback_release": previous["release"],
    }
    if target.cards:
        pins["nvidia_driver_version"] = previous["driver"]
    return replace(target, variables={**target.variables, **pins})


def extra_variables(work: Work) -> dict[str, Any]:
    """Variables of this run alone."""
    return {
        **work.source.extra,
        **({} if work.options.reboot else {"reboot_gate_allowed": False}),
    }


def plan(work: Work, target: Target) -> steps.HostPlan:
    """What a host's facts and this run's source come to."""
    return steps.plan_host(
        target,
        work.run.hosts[target.name].facts,
        locks=work.source.locks,
        release=work.source.release,
        bundle_mib=work.source.mib,
        usual=usual_seconds(target.name, target.profile),
    )


def choose_source(options: Options, scratch: Path, console: Console) -> source.Source:
    """Where packages come from."""
    folder = scratch / "source"
    folder.mkdir()
    if options.bundle:
        console.print(f"checking {options.bundle}")
        return source.from_bundle(options.bundle, folder)
    if options.mirror:
        return source.from_mirror(options.mirror, folder)
    return source.online(folder)


def sudo_password(options: Options, scratch: Path) -> Path | None:
    """The file that Ansible reads the password from; one we write goes away with the run."""
    if options.sudo_password_file:
        if not options.sudo_password_file.is_file():
            raise UserError(f"{options.sudo_password_file} is not there")
        return options.sudo_password_file
    if not options.ask_sudo_password:
        return None
    path = scratch / "sudo"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as stream:
        stream.write(getpass.getpass("sudo password on the hosts: ") + "\n")
    return path


def agreed(console: Console) -> bool:
    """Ask; no answer (no terminal) is a no that says what to pass."""
    if not console.is_terminal:
        raise UserError("nobody is here to confirm the plan", hint="Pass --yes to go on without.")
    return console.input("Go on? \\[y/N] ").strip().lower() in ("y", "yes")


def final_status(run: Run, *, interrupted: bool) -> str:
    """The run's status from its hosts'."""
    statuses = {outcome.status for outcome in run.hosts.values()}
    if interrupted:
        for outcome in run.hosts.values():
            if outcome.status == WAITING:
                outcome.status = STOPPED
        return "interrupted"
    if statuses <= {OK}:
        return "check" if run.check else OK
    if statuses <= {OK, STOPPED}:
        return STOPPED
    return "refused" if statuses <= {OK, "refused"} else "failed"


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C and SIGTERM only ask the run to end; a second one ends it at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
