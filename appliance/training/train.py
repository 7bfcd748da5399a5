"""Stage `train`: starts the training through `paddle.distributed.launch` and watches it.

The training has processes of its own (`train_worker`), one on the CPU and one a card else. They
write checkpoints, log.jsonl and visualdl/ into the stage's folder; this one forwards the wish to
stop, notices a training that died or stands still, and publishes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from appliance.errors import ApplianceError, Interrupted, MachineError, StageError, UserError
from appliance.files import read_json
from appliance.jobs.artifacts import Stage
from appliance.machine import cards
from appliance.training.log import read_log
from appliance.training.orphans import die_with_parent
from appliance.training.program import LIFELINE, run_stage
from appliance.training.settings import SETTINGS

STALL_SECONDS = 1800.0  # longest time without a finished step or evaluation batch
SAVE_SECONDS = 60.0  # time to finish a step and save it after a wish to stop
ALIVE = "alive"  # in scratch: its time of change says when the training last moved
RESULT = "result.json"  # in scratch: which checkpoint was chosen
SHOWN_LINES = 30  # of the worker's log, where it failed
KILLED = {247: "SIGKILL", 245: "SIGSEGV", 250: "SIGABRT", 241: "SIGTERM"}  # exit codes of launch


def train(stage: Stage) -> None:
    """Run the stage. Raises UserError or StageError with the worker's last error."""
    devices = choose_devices(stage)
    logs = stage.scratch / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    (stage.scratch / ALIVE).touch()
    code = launch(stage, logs, devices)
    if code != 0:
        raise failure(code, logs / "workerlog.0")
    publish(stage)


def choose_devices(stage: Stage) -> list[str]:
    """The cards to train on, empty for the CPU. Raises MachineError for half precision there."""
    section = stage.spec["train"]
    on_cards = bool(cards()) and installed("paddlepaddle-gpu")
    half = [name for name in ("bf16", "fp16") if section[name]]
    if half and not on_cards:
        raise MachineError(
            f"train.{half[0]} needs a card, and there is none that Paddle could use here",
            hint=f"Set train.{half[0]} to false: on the CPU training is in float32.",
        )
    return [str(i) for i in range(stage.spec["devices"])] if on_cards else []


def installed(package: str) -> bool:
    """Whether a Python package is installed here."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def launch(stage: Stage, logs: Path, devices: list[str]) -> int:
    """Start the training and wait for its end; gives the launcher's exit code.

    Whatever ends this wait, no process of the training is left behind.
    """
    description = stage.scratch / "stage.json"
    stage.write(description)
    places = ["--devices", ",".join(devices)] if devices else ["--nproc_per_node", "1"]
    options = [*places, "--log_dir", str(logs), "--enable_gpu_log", "0"]
    worker = [sys.executable, "-u", "-m", "appliance.training.train_worker", str(description)]
    with (logs / "launcher.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "paddle.distributed.launch", *options, *worker],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **settings(), LIFELINE: "0"},
            preexec_fn=die_with_parent,
            start_new_session=True,
        )
    try:
        return watch(stage, process)
    except Interrupted:
        stop(process)
        raise
    finally:
        process.kill()  # its workers asked the kernel to die with it
        process.wait()


def settings() -> dict[str, str]:
    """What Paddle reads from the environment when it is imported; what is set already stays."""
    return {name: value for name, value in SETTINGS.items() if name not in os.environ}


def watch(stage: Stage, process: subprocess.Popen[bytes]) -> int:
    """Wait for the launcher's exit code. Raises StageError where the training stands still."""
    alive = stage.scratch / ALIVE
    while (code := process.poll()) is None:
        if time.time() - alive.stat().st_mtime > STALL_SECONDS:
            raise StageError(
                f"the training has not finished a step in {STALL_SECONDS / 60:.0f} minutes",
                hint=f"Its log: {stage.scratch / 'logs' / 'workerlog.0'}. "
                "`appliance resume` goes on from its last checkpoint.",
            )
        time.sleep(0.2)
    return code


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the training to save its state at the end of the step, and wait for that."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(SAVE_SECONDS)


def failure(code: int, log: Path) -> ApplianceError:
    """The error of a training that ended with `code`: its worker's last words and their place."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    print("\n".join(text.splitlines()[-SHOWN_LINES:]), file=sys.stderr)
    message, hint = last_words(text)
    where = f"The worker's log: {log}."
    if code == Interrupted.exit_code:
        return Interrupted(message or "the training was stopped", hint=hint)
    if code == UserError.exit_code and message:
        return UserError(message, hint=hint)
    if code in KILLED:
        cause = "Most often memory ran out: lower train.per_device_train_batch_size or "
        cause = f"{cause}data.max_length. " if KILLED[code] == "SIGKILL" else ""
        return StageError(
            f"the training was killed by {KILLED[code]}. {where}",
            hint=f"{cause}`appliance resume` goes on from the last checkpoint.",
        )
    return StageError(f"{message or f'the training ended with code {code}'}. {where}", hint=hint)


def last_words(text: str) -> tuple[str, str]:
    """Message and hint of the last error in a worker's log: ours, else a traceback's last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    for i in reversed(range(len(lines))):
        if lines[i].startswith("error: "):
            return lines[i].removeprefix("error: "), " ".join(lines[i + 1 : i + 2])
    errors = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
    return (errors[-1] if errors else ""), ""


def publish(stage: Stage) -> None:
    """Say what the best checkpoint is and publish it."""
    result = read_json(stage.scratch / RESULT)
    lines = [line for line in read_log(stage.output / "log.jsonl") if "loss" in line]
    metrics = {"steps": result["steps"], "step": result["step"], "train_loss": lines[-1]["loss"]}
    if result["eval_loss"] is not None:
        metrics["eval_loss"] = result["eval_loss"]
        stage.events.note(
            f"The best checkpoint is that of step {result['step']}: "
            f"held-out loss {result['eval_loss']:.4f}."
        )
    stage.publish(metrics)


if __name__ == "__main__":
    run_stage(train)
