"""The deploy stage: serve a bundle under a name, ask it a question through both doors, and go
back to the bundle that was served before where the new one does not come up.

    deployments/NAME/log.txt      what the server prints
    deployments/NAME/log.old.txt  what the one before it printed
    deployments/NAME/lock         held while a server is started or stopped
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import DeployError, Interrupted
from appliance.files import read_json
from appliance.home import home
from appliance.jobs import ask, processes
from appliance.jobs.events import Events
from appliance.jobs.follow import last_lines
from appliance.jobs.rows import Deployment
from appliance.jobs.store import Store

VARIABLE = "APPLIANCE_DEPLOYMENT"  # the deployment's folder, in its server's environment
START_SECONDS = 180.0  # until a server answers; a large graph takes long to load
STOP_SECONDS = 40.0  # before a server is killed; it gives running requests 30 s to end
SHOWN_LINES = 8

# An option of the serve section → the server's option; None is left to the server's default.
FLAGS = {
    "host": "--host",
    "rest_port": "--rest-port",
    "grpc_port": "--grpc-port",
    "engine": "--engine",
    "backend": "--backend",
    "slots": "--slots",
    "max_length": "--max-length",
    "max_queue": "--max-queue",
    "request_timeout": "--request-timeout",
    "threads": "--threads",
    "name": "--name",
}

Pulse = Callable[[], None]  # called often while something is waited for; raises to stop the wait


@dataclass(frozen=True)
class Target:
    """What to serve: a bundle, and the recipe's serve section with its name filled in."""

    bundle: Path
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The deployment's name."""
        return str(self.options["name"])

    @property
    def same(self) -> tuple[str, str]:
        """What two targets that need not replace each other agree on."""
        return str(self.bundle), json.dumps(self.options, sort_keys=True)


def folder(name: str) -> Path:
    """A deployment's folder."""
    path = home() / "deployments" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def deploy(
    store: Store, job: str, target: Target, question: str, events: Events, pulse: Pulse
) -> bool:
    """Serve the target; False where it is served already. Raises DeployError."""
    with locked(target.name):
        seen = store.deployment(target.name)
        fresh = not is_served(seen, target)
        if fresh:
            replace(store, job, seen, target, events)
        serving = store.deployment(target.name)
        assert serving is not None
        try:
            await_health(serving, pulse)
            pulse()
            answers = ask.ask_both(serving, target.bundle, question)
        except DeployError:
            if serving.status == "starting":
                fall_back(store, serving, events, pulse)
            raise
        except Interrupted:
            events.note(f"the server goes on; `appliance down {target.name}` stops it")
            raise
        store.set_deployment(serving, "running")
    events.table("One question through both doors", ["door", "question", "answer"], answers)
    return fresh


def is_served(seen: Deployment | None, target: Target) -> bool:
    """Whether a living server serves, or is about to serve, exactly this target."""
    if seen is None or not seen.lives or (seen.status == "running" and not ask.healthy(seen)):
        return False
    return Target(Path(seen.bundle), json.loads(seen.options)).same == target.same


def replace(
    store: Store, job: str, seen: Deployment | None, target: Target, events: Events
) -> None:
    """Stop what is served under the name and start the target."""
    previous = None
    if seen is not None and seen.status == "starting":
        previous = seen.previous  # an earlier replacement that was killed half way
    elif seen is not None and seen.status == "running" and seen.bundle != str(target.bundle):
        previous = json.dumps({"bundle": seen.bundle, "options": json.loads(seen.options)})
        events.note(f"replacing the bundle that {target.name} serves")
    check_ports(store, target)  # before what is served is stopped
    end_servers(target.name)
    events.note(f"starting the server; `appliance logs {target.name}` shows what it says")
    start(store, job, target, previous)


def fall_back(store: Store, failed: Deployment, events: Events, pulse: Pulse) -> None:
    """End a server that did not come up, and serve again what was served before."""
    end_servers(failed.name)
    store.set_deployment(failed, "failed")
    if failed.previous is None:
        return
    old = json.loads(failed.previous)
    target = Target(Path(old["bundle"]), old["options"])
    events.warning(f"{failed.name} does not come up; the bundle served before is started again")
    start(store, failed.job, target, None)
    again = store.deployment(failed.name)
    assert again is not None
    await_health(again, pulse)
    store.set_deployment(again, "running")
    events.note(f"{failed.name} serves the earlier bundle again")


def start(store: Store, job: str, target: Target, previous: str | None) -> None:
    """Start a server in a session of its own, and record it as `starting`."""
    arguments = [sys.executable, "-m", "serving", str(target.bundle)]
    for option, flag in FLAGS.items():
        if (value := target.options.get(option)) is not None:
            arguments += [flag, str(value)]
    where = folder(target.name)
    if (where / "log.txt").exists():
        os.replace(where / "log.txt", where / "log.old.txt")
    with (where / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=where,
            env={**os.environ, VARIABLE: str(where), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    store.put_deployment(
        bundle=target.bundle, job=job, pid=process.pid, options=target.options, previous=previous
    )


def await_health(serving: Deployment, pulse: Pulse) -> None:
    """Wait until both doors say that they serve. Raises DeployError where the process ends first
    or the deadline passes, with the last lines of its log."""
    deadline = time.monotonic() + START_SECONDS
    while not ask.healthy(serving):
        pulse()
        if not serving.lives:
            raise DeployError(
                f"the server of {serving.name} ended while it started" + tail(serving.name),
                hint=f"Its log: {folder(serving.name) / 'log.txt'}",
            )
        if time.monotonic() > deadline:
            raise DeployError(
                f"the server of {serving.name} does not answer after {START_SECONDS:.0f} s"
                + tail(serving.name),
                hint=f"Its log: {folder(serving.name) / 'log.txt'}",
            )
        time.sleep(0.2)


def tail(name: str) -> str:
    """The last lines of a server's log, below the message that they belong to."""
    return "".join(f"\n  {line}" for line in last_lines(folder(name) / "log.txt", 0, SHOWN_LINES))


def check_ports(store: Store, target: Target) -> None:
    """Raise DeployError where a port that the target asks for is in use, unless by what it
    replaces."""
    host = str(target.options["host"])
    for field in ("rest_port", "grpc_port"):
        port = int(target.options[field])
        if not port_in_use(host, port):
            continue
        ours = next(
            (d.name for d in store.deployments() if d.lives and port in (d.rest_port, d.grpc_port)),
            None,
        )
        if ours == target.name:
            continue
        raise DeployError(
            f"serve.{field}: port {port} on {host} is in use"
            + (f" by the deployment {ours}" if ours else ""),
            hint=(f"`appliance down {ours}` frees it, or " if ours else "Free it, or ")
            + f"give another `{field}` under `serve` in the recipe.",
        )


def port_in_use(host: str, port: int) -> bool:
    """Whether binding the port fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a deployment's lock. Raises DeployError where another process holds it."""
    with (folder(name) / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeployError(
                f"another process is changing the deployment {name}",
                hint="Wait for it: `appliance ps` shows what runs.",
            ) from None
        yield


def end_servers(name: str) -> int:
    """End every server of a deployment, recorded or not; how many there were."""
    return processes.end_carrying(VARIABLE, str(folder(name)), STOP_SECONDS)


def down(store: Store, name: str) -> str:
    """Stop a deployment; what was done, in words. Raises DeployError where there is none."""
    seen = store.deployment(name)
    if seen is None:
        known = [d.name for d in store.deployments() if d.lives]
        raise DeployError(
            f"no deployment is called {name!r}",
            hint=f"Running: {', '.join(known)}." if known else "None is running.",
        )
    with locked(name):
        ended = end_servers(name)
        if seen.status in ("starting", "running"):
            store.set_deployment(seen, "stopped")
    return f"{name} is stopped" if ended else f"{name} was not running"


def question_for(evaluated: Path | None) -> str:
    """A held-out question of the job's own, or a greeting where it has none."""
    if evaluated is not None:
        answers = read_json(evaluated / "report.json").get("answers") or []
        if answers:
            return str(answers[0]["question"])
    return ask.GREETING
