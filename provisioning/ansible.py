"""Running a playbook through ansible-runner: events out, with deadlines and a way to stop."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible_runner

from provisioning.targets import FOLDER, Target, tool

SSH = (
    "-o ControlMaster=auto -o ControlPersist=60s -o ConnectTimeout=10 "
    "-o ServerAliveInterval=5 -o ServerAliveCountMax=6 -o BatchMode=yes"
)
# ssh says this of every connection with a terminal.
NOISE = re.compile(r"Shared connection to \S+ closed\.")
KINDS = {
    "runner_on_start": "start",
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
    "runner_on_skipped": "skipped",
    "runner_retry": "retry",
}


@dataclass(frozen=True)
class Event:
    """One step of one host. `kind` is start, ok, changed, failed, ignored, unreachable, skipped or
    retry; `seconds` how long the task took."""

    kind: str
    host: str
    role: str
    task: str
    seconds: float
    result: Mapping[str, Any]
    action: str = ""

    @property
    def message(self) -> str:
        """What the task says about its failure."""
        result = self.result
        parts = [str(result.get(key) or "").strip() for key in ("msg", "stderr", "module_stderr")]
        parts.append(str((result.get("extract_results") or {}).get("err") or "").strip())
        if not any(parts[1:]):
            parts.append(str(result.get("stdout") or "").strip())
        for item in result.get("results") or []:
            if item.get("failed"):
                parts.append(str(item.get("msg", "")))
        lines = [line for part in parts for line in part.splitlines() if not NOISE.match(line)]
        return "\n".join(dict.fromkeys(line.rstrip() for line in lines if line.strip()))


@dataclass
class Limits:
    """Seconds: of a whole run, and of one task. `cancelled` is asked often."""

    run: float = 4 * 3600
    task: int = 1800
    cancelled: Callable[[], bool] = field(default=lambda: False)


def play(
    playbook: str,
    targets: Sequence[Target],
    on_event: Callable[[Event], None],
    log: Path,
    *,
    extra: Mapping[str, Any],
    limits: Limits,
    check: bool = False,
    password_file: Path | None = None,
) -> str:
    """Run one of our playbooks over hosts; returns ansible-runner's status: successful, failed,
    timeout or canceled. What Ansible prints is added to `log`.

    The folder that ansible-runner works in is new for each run and removed after it: it saves the
    command line, and would go on using it.
    """
    folder = Path(tempfile.mkdtemp(prefix="prov-"))
    environment = ansible_environment(folder, hosts=len(targets), task_seconds=limits.task)
    if password_file:
        environment["ANSIBLE_BECOME_PASSWORD_FILE"] = str(password_file.absolute())
    try:
        runner = ansible_runner.run(
            private_data_dir=str(folder),
            playbook=str(FOLDER / playbook),
            inventory={"all": {"hosts": {t.name: {**t.variables} for t in targets}}},
            extravars=dict(extra),
            envvars=environment,
            cmdline="--check --diff" if check else "--diff",
            settings={"pexpect_timeout": 1},
            quiet=True,
            timeout=int(limits.run),
            event_handler=lambda raw: bool(handle(raw, on_event)),
            cancel_callback=limits.cancelled,
        )
        printed = Path(runner.config.artifact_dir) / "stdout"
        if printed.exists():
            with log.open("a", encoding="utf-8") as stream:
                stream.write(printed.read_text(encoding="utf-8", errors="replace"))
        return str(runner.status)
    finally:
        close_connections(folder / "cp")
        shutil.rmtree(folder, ignore_errors=True)


def ansible_environment(folder: Path, *, hosts: int, task_seconds: int) -> dict[str, str]:
    """Variables that Ansible runs with; what it keeps for itself goes below `folder`."""
    return {
        "PATH": f"{Path(tool('ansible-playbook')).parent}{os.pathsep}{os.environ['PATH']}",
        "ANSIBLE_SSH_ARGS": SSH,
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
        "ANSIBLE_SSH_RETRIES": "2",
        # ansible-runner turns this off where it is not set.
        "ANSIBLE_HOST_KEY_CHECKING": "true",
        "ANSIBLE_PIPELINING": "true",
        "ANSIBLE_TASK_TIMEOUT": str(task_seconds),
        "ANSIBLE_FORKS": str(min(32, max(5, hosts))),
        "ANSIBLE_INTERPRETER_PYTHON_FALLBACK": "/usr/bin/python3",
        "ANSIBLE_PYTHON_INTERPRETER": "auto_silent",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_RETRY_FILES_ENABLED": "false",
        "ANSIBLE_HOME": str(folder / "home"),
    }


def handle(raw: Mapping[str, Any], on_event: Callable[[Event], None]) -> bool:
    """Pass on one event of ansible-runner's. False: it need not keep it in a file."""
    kind = KINDS.get(str(raw.get("event")))
    data = raw.get("event_data") or {}
    if kind is None or not data.get("host"):
        return False
    result = data.get("res") or {}
    if kind == "ok" and result.get("changed"):
        kind = "changed"
    if kind == "failed" and data.get("ignore_errors"):
        kind = "ignored"
    on_event(
        Event(
            kind=kind,
            host=str(data["host"]),
            role=str(data.get("role") or ""),
            task=str(data.get("task") or "").removeprefix(f"{data.get('role')} : "),
            seconds=float(data.get("duration") or 0.0),
            result=result,
            action=str(data.get("task_action") or "").rsplit(".", 1)[-1],
        )
    )
    return False


def close_connections(sockets: Path, patience: float = 5) -> None:
    """End the ssh processes that keep connections open for the next task."""
    for path in sockets.glob("*"):
        command = ["ssh", "-O", "exit", "-o", f"ControlPath={path}", "none"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=patience)
    deadline = time.monotonic() + patience
    while any(sockets.glob("*")) and time.monotonic() < deadline:
        time.sleep(0.05)
