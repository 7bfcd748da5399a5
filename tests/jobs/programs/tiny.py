"""A stage program that does next to nothing, for real: a process that reads its stage.json, says
how far it is, keeps a checkpoint, and publishes. What it does wrong comes from the environment.

    TINY_HOLD=1           `train`, where it begins, waits behind its third step of six until it is
                          ended, or until there is a file `go` at home; a run that goes on does not
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
from appliance.home import home
from appliance.jobs.artifacts import Stage, read_manifest
from appliance.training.program import run_stage

STEPS = 6
HELD_AT = 3


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
    checkpoint = stage.scratch / "step"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    go = home() / "go"
    with (stage.output / "log.txt").open("a") as log:
        log.write(f"from {first}\n")
    for step in range(first + 1, STEPS + 1):
        write_text(checkpoint, str(step))
        stage.events.progress(step, STEPS, "step", loss=2.0 / step, tokens_per_second=99.0)
        while first == 0 and step == HELD_AT and "TINY_HOLD" in os.environ and not go.exists():
            time.sleep(0.02)
