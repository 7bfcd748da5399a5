"""A home of its own for each test, and controllers as processes in it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from appliance.jobs import launcher
from appliance.jobs.rows import Job
from appliance.jobs.store import Store

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
DEADLINE = 120.0  # seconds for what takes a few; no test waits so long on a machine that is free


@pytest.fixture
def home(tmp_path, monkeypatch):
    path = tmp_path / "home"
    monkeypatch.setenv("APPLIANCE_HOME", str(path))
    path.mkdir()
    yield path
    for job in path.glob("jobs/*"):
        launcher.end_leftovers(job, grace=0.0)


class Control:
    """Starts `control.py` in the test's home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home.parent / "rows.jsonl"
        self.data.write_text("{}\n")
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "control.py"), *arguments],
            env={
                **os.environ,
                "APPLIANCE_HOME": str(self.home),
                "PYTHONPATH": f"{HERE}:{ROOT}",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=DEADLINE)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def up(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("up", "tiny", str(self.data), **environment)

    def start_up(self, **environment: str) -> subprocess.Popen[str]:
        return self.start("up", "tiny", str(self.data), **environment)

    @property
    def job(self) -> Job:
        store = Store()
        try:
            return store.job("latest")
        finally:
            store.close()

    def stages(self) -> dict[str, object]:
        store = Store()
        try:
            return {stage.name: stage for stage in store.stages(self.job.id)}
        finally:
            store.close()


@pytest.fixture
def control(home):
    made = Control(home)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


def wait_until(true: Callable[[], object], seconds: float = DEADLINE) -> None:
    """Wait until something is so; errors of a thing that is not there yet count as not so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            if true():
                return
        time.sleep(0.02)
    raise AssertionError(f"not so after {seconds} s")


def workers(job: Job, home: Path) -> list[psutil.Process]:
    return launcher.processes.carrying(launcher.JOB_VARIABLE, str(home / "jobs" / job.id))
