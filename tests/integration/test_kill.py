"""The real pipeline on a tiny model, killed with SIGKILL at every stage, worker and controller.

One job goes through all of it: at each stage first the worker is killed, then the controller, and
the job is resumed. What comes out is served, and is what an undisturbed run would have made.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from appliance.bundle.read import open_bundle
from appliance.jobs import launcher
from appliance.jobs.store import Store
from tests.jobs.conftest import wait_until
from tests.jobs.test_deploy import free_ports
from tests.pipeline import tiny_recipe, write_dialogues

STAGES = ["prepare", "train", "evaluate", "merge", "export", "verify"]
STEPS = 30


class Victim:
    """One job of the real pipeline, in a home of its own."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.rest, self.grpc = free_ports()
        recipe = tiny_recipe(model, write_dialogues(folder / "rows.jsonl"), max_steps=STEPS)
        recipe["serve"] |= {"rest_port": self.rest, "grpc_port": self.grpc}
        self.recipe = folder / "tiny.yaml"
        self.recipe.write_text(yaml.safe_dump(recipe))
        self.store = Store(self.home / "jobs.sqlite")
        self.controller: subprocess.Popen[str] | None = None
        self.seen: set[str] = set()

    def start(self, *arguments: str) -> None:
        self.controller = subprocess.Popen(
            [sys.executable, "-m", "appliance.cli", *arguments],
            env={**os.environ, "APPLIANCE_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[int, str, str]:
        assert self.controller is not None
        out, err = self.controller.communicate(timeout=120)
        return self.controller.returncode, out, err

    def kill_controller(self) -> None:
        assert self.controller is not None
        self.controller.send_signal(signal.SIGKILL)
        self.controller.communicate(timeout=30)
        wait_until(lambda: not self.workers(), 30)

    @property
    def job(self):
        return self.store.job("latest")

    def stage(self, name: str):
        return next(row for row in self.store.stages(self.job.id) if row.name == name)

    def workers(self) -> list[psutil.Process]:
        folder = self.home / "jobs" / self.job.id
        return launcher.processes.carrying(launcher.JOB_VARIABLE, str(folder))

    def at_work(self, name: str) -> bool:
        """Whether a stage's program runs and, for `train`, has another whole checkpoint."""
        assert self.controller is not None
        assert self.controller.poll() is None, f"{name}: {self.end()}"
        row = self.stage(name)
        if row.status != "running" or row.pid is None:
            return False
        return name != "train" or bool(self.checkpoints() - self.seen)

    def checkpoints(self) -> set[str]:
        return {
            str(p) for p in self.home.glob("artifacts/train/*/scratch/checkpoints/*/whole.json")
        }

    def wait_for(self, name: str) -> int:
        """Wait until a stage is at work, and a moment more; the number of its process."""
        self.seen = self.checkpoints()
        wait_until(lambda: self.at_work(name), 90)
        time.sleep(0.1)
        return self.stage(name).pid

    def events(self) -> list[dict]:
        path = self.home / "jobs" / self.job.id / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def clean(self) -> None:
        if self.controller is not None and self.controller.poll() is None:
            self.kill_controller()
        subprocess.run(
            [sys.executable, "-m", "appliance.cli", "down", "tiny"],
            env={**os.environ, "APPLIANCE_HOME": str(self.home)},
            capture_output=True,
            timeout=60,
        )
        self.store.close()


@pytest.fixture
def victim(tmp_path, tiny_model):
    made = Victim(tmp_path, tiny_model)
    yield made
    made.clean()


@pytest.mark.timeout(900)
def test_killed_at_every_stage_it_still_arrives(victim):
    victim.start("up", str(victim.recipe))
    wait_until(lambda: victim.job.status == "running", 60)
    job = victim.job.id
    for name in STAGES:
        kill_worker_then_controller(victim, name)
    kill_server_then_controller(victim)
    code, out, err = victim.end()
    assert code == 0, err
    assert victim.job.id == job and victim.job.status == "succeeded"
    assert out.splitlines()[-1].endswith(f"{job}: succeeded")
    check_training(victim)
    check_served(victim)


def kill_worker_then_controller(victim, name):
    os.kill(victim.wait_for(name), signal.SIGKILL)
    code, _, err = victim.end()
    assert code == 1 and f"{name} was killed (SIGKILL)" in err, f"{name}: {code} {err}"
    assert victim.job.status == "failed"
    assert not victim.workers(), "its children ended with it"
    victim.start("resume", "latest")

    victim.wait_for(name)
    victim.kill_controller()
    victim.store.reap()
    assert (victim.job.status, victim.stage(name).status) == ("interrupted", "interrupted")
    victim.start("resume", "latest")


def kill_server_then_controller(victim):
    def starting():
        row = victim.store.deployment("tiny")
        return row is not None and row.status == "starting" and row.lives

    wait_until(starting, 120)
    os.kill(victim.store.deployment("tiny").pid, signal.SIGKILL)
    code, _, err = victim.end()
    assert code == 2 and "ended while it started" in err, f"{code} {err}"
    victim.start("resume", "latest")

    wait_until(starting, 60)
    victim.controller.send_signal(signal.SIGKILL)
    victim.controller.communicate(timeout=30)
    assert victim.store.deployment("tiny").lives, "a server does not hang on its controller"
    victim.start("resume", "--detach", "latest")
    code, out, err = victim.end()
    assert code == 0 and "runs in the background" in out, err
    victim.start("logs", "-f", "latest")


def check_training(victim):
    """Every step is in the log once, and no run began again from nothing."""
    (log,) = victim.home.glob("artifacts/train/*/log.jsonl")
    steps = [row["step"] for row in map(json.loads, log.read_text().splitlines()) if "loss" in row]
    assert steps == list(range(1, STEPS + 1))
    firsts, last = [], STEPS
    for event in victim.events():
        if event["stage"] == "train" and event["kind"] == "note" and "Going on" in event["text"]:
            firsts.append(int(event["text"].rstrip(".").split()[-1]))
    assert len(firsts) == 2 and 0 < firsts[0] <= firsts[1] <= last, firsts


def check_served(victim):
    bundle = open_bundle(victim.home / "bundles" / "tiny", check=True)
    assert bundle.manifest["proof"]["passed"] is True
    assert httpx.get(f"http://127.0.0.1:{victim.rest}/health", timeout=5).status_code == 200
    body = {"messages": [{"role": "user", "content": "My printer does not work."}]}
    url = f"http://127.0.0.1:{victim.rest}/v1/chat/completions"
    answer = httpx.post(url, json={**body, "max_tokens": 8, "temperature": 0}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert not list(victim.home.glob("artifacts/*/*.partial")), "nothing half made is left"
