"""Starts a stage's program as a process of its own, and ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.jobs import processes
from appliance.jobs.artifacts import Stage

PROGRAMS = "appliance.training"  # the package whose modules are the stage programs
JOB_VARIABLE = "APPLIANCE_JOB"  # the job's folder, for every process that works for it
GRACE_SECONDS = 90.0  # between asking a stage to end and killing it: training saves its step
LEFTOVER_SECONDS = 20.0  # the same for what a dead controller left, which knows that it must end


@dataclass
class Worker:
    """A running stage program: the leader of a session of its own.

    Its stdin is the lifeline: the pipe closes when the controller dies, and the program ends.
    """

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Its process number, which is its process group's too."""
        return self.process.pid

    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    def end(self, *, hurry: Callable[[], bool]) -> None:
        """End it and all that it started: ask, then kill after the grace or when `hurry` says so.

        A program may start processes that leave its group (paddle.distributed.launch does), so
        the last sweep goes by the environment.
        """
        processes.signal_group(self.pid, signal.SIGTERM)
        processes.signal_group(self.pid, signal.SIGCONT)
        deadline = time.monotonic() + GRACE_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline and not hurry():
            time.sleep(0.05)
        processes.signal_group(self.pid, signal.SIGKILL)
        self.process.wait(timeout=processes.KILL_WAIT)
        end_leftovers(self.folder, grace=0.0)

    def close(self) -> None:
        """Let go of the lifeline of a program that has ended."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()


def launch(stage: Stage, folder: Path, *, programs: str = PROGRAMS) -> Worker:
    """Start a stage's program; `folder` is the job's, and the program's working directory.

    What it prints is appended to `output/STAGE.txt` there.
    """
    description = folder / "stages" / f"{stage.name}.json"
    stage.write(description)
    with output_path(folder, stage.name).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"{programs}.{stage.name}", str(description)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment(folder),
            start_new_session=True,
        )
    return Worker(folder, process)


def output_path(folder: Path, stage: str) -> Path:
    """Where a stage's own output goes, below its job's folder."""
    path = folder / "output" / f"{stage}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def environment(folder: Path) -> dict[str, str]:
    """The environment of a stage's program; `folder` is the job's."""
    return {
        **os.environ,
        # Paddle's MKL picks a slow path on AMD processors (26 against 87 GFLOP/s a core), and one
        # thread by default; both are read when it is imported.
        "MKL_DEBUG_CPU_TYPE": "5",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0))),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "APPLIANCE_LIFELINE": "1",
        JOB_VARIABLE: str(folder),
    }


def end_leftovers(folder: Path, *, grace: float = LEFTOVER_SECONDS) -> int:
    """End the processes that still work for a job whose controller is gone; how many there were."""
    return processes.end_carrying(JOB_VARIABLE, str(folder), grace)
