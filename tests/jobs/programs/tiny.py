"""A stage program that does next to nothing, for real: a process that reads its stage.json, says
how far it is, keeps a checkpoint, and publishes. What it does wrong comes from the environment.

    TINY_STEPS=40         steps of `train`, a twentieth of a second each
    TINY_TROUBLE=STAGE:WHAT    WHAT: data (a user's mistake), crash, silent (ends without its
                          artifact), stray (leaves a process in another session), deaf
                          (does not hear SIGTERM)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from appliance.errors import DataError
from appliance.files import write_text
from appliance.jobs.artifacts import Stage, read_manifest
from appliance.training.program import run_stage


def main() -> None:
    run_stage(work)


def work(stage: Stage) -> None:
    for name, folder in stage.inputs.items():
        assert read_manifest(folder)["stage"] == name
    print(f"{stage.name} works as {os.getpid()}", flush=True)
    trouble(stage.name)
    if stage.name == "train":
        train(stage)
    write_text(stage.output / f"{stage.name}.txt", f"made by {stage.name}\n")
    stage.events.note(f"{stage.name} has written its file")
    if os.environ.get("TINY_TROUBLE") == f"{stage.name}:silent":
        sys.exit(0)
    stage.publish({"loss": 1.0})


def trouble(name: str) -> None:
    what = os.environ.get("TINY_TROUBLE", "").removeprefix(f"{name}:")
    if what == "data":
        raise DataError("rows.jsonl:3: no messages", hint="Mend line 3.")
    if what == "crash":
        raise ZeroDivisionError("the tiny stage divides by nothing")
    if what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if what == "stray":
        subprocess.Popen(["sleep", "300"], start_new_session=True)


def train(stage: Stage) -> None:
    """Steps, each kept in scratch as a checkpoint; `log.txt` says from which step each run went."""
    steps = int(os.environ.get("TINY_STEPS", "4"))
    checkpoint = stage.scratch / "step"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    with (stage.output / "log.txt").open("a") as log:
        log.write(f"from {first}\n")
    for step in range(first, steps):
        time.sleep(0.05)
        write_text(checkpoint, str(step + 1))
        stage.events.progress(
            step + 1, steps, "steps", loss=2.0 / (step + 1), tokens_per_second=99.0
        )
